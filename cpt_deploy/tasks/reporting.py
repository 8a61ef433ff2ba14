"""Interfaces that receive the progress of workflows; nothing here is printed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Progress of an operation of known length."""

    def advance(self, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Set the number of finished units to `done`, with a few figures in `detail`."""


class Reporter(Protocol):
    """Receives messages and progress; `cpt_cli.output.Output` prints them."""

    def note(self, text: str) -> None:
        """Receive a message of one line."""

    def warning(self, text: str) -> None:
        """Receive a warning of one line about something that is allowed but probably not intended."""

    def bar(self, description: str, total: int, *, start: int = 0) -> AbstractContextManager[Progress]:
        """Begin an operation of `total` units, of which `start` are done; it ends with the context."""


class _NoProgress:
    def advance(self, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Do nothing."""


class SilentReporter:
    """A reporter that discards everything."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def warning(self, text: str) -> None:
        """Do nothing."""

    @contextmanager
    def bar(self, description: str, total: int, *, start: int = 0) -> Iterator[Progress]:
        """Do nothing."""
        yield _NoProgress()


SILENT = SilentReporter()
