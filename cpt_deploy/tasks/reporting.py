"""Who hears of what goes on while something is exported, validated or swept; nothing here is printed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """A stretch of work of known length."""

    def advance(self, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Hear that `done` units are finished, with a few figures beside."""


class Reporter(Protocol):
    """Hears of what goes on; `cpt_cli.output.Output` prints it."""

    def note(self, text: str) -> None:
        """Hear in one line what is going on."""

    def warning(self, text: str) -> None:
        """Hear in one line of something that is allowed, and probably not meant."""

    def bar(self, description: str, total: int, *, start: int = 0) -> AbstractContextManager[Progress]:
        """Hear of a stretch of work, of which `start` units are done; it lasts as long as the context."""


class _NoProgress:
    def advance(self, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Say nothing."""


class SilentReporter:
    """Says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def bar(self, description: str, total: int, *, start: int = 0) -> Iterator[Progress]:
        """Show nothing."""
        yield _NoProgress()


SILENT = SilentReporter()
