"""Where a generated text ends: before the first of some given strings, without letting a part of one out early."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on as far as it cannot be the beginning of a string that ends it.

    Args:
        stops: The strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether one of the strings has come."""

    def add(self, text: str) -> str:
        """Take a further piece and return what can be given out."""
        self._held += text
        found = [position for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out = self._held[: len(self._held) - kept]
        self._held = self._held[len(self._held) - kept :]
        return out

    def rest(self) -> str:
        """Return what was held back, at the end of the text."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that is the beginning of a string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
