"""Stop strings: a generated text ends before the first of them, and no part of one is sent early."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on, except for an end that may be the beginning of a stop string.

    Args:
        stops: Stop strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """Whether a stop string was found."""

    def add(self, text: str) -> str:
        """Take a further piece of text and return the text that can be sent."""
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
        """Return the held-back text, at the end of the generation."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of a text that is a prefix of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
