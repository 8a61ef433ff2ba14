"""The output of all commands; nothing else in the project writes to the terminal.

Data goes to stdout. Progress, notes, hints, warnings and errors go to stderr. With `--json` stdout holds exactly one
JSON object, also if the command fails, and the tables are left out.
"""

import dataclasses
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy import readable
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

JSON_SCHEMA = 1
"""Version of the JSON objects; increased when a field changes its meaning or is removed."""

_GAP = 3
"""Columns of the terminal between two of a table."""

PIPE_WIDTH = 200
"""Columns assumed if the output is not a terminal, so that tables in files and pipes are not wrapped."""


class Bar:
    """A progress bar on stderr, drawn only on a terminal.

    Args:
        progress: The progress display, or `None` to draw nothing.
        description: Label of the bar.
        total: Number of units.
    """

    def __init__(self, progress: "Progress | None", description: str, total: int) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task(description, total=total, detail="")

    def advance(self, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Show that `done` units are finished, with figures next to the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, detail=detail)


class Output:
    """The output of the running command: for people, for scripts (`json_mode`), or results only (`quiet`)."""

    def __init__(self) -> None:
        self.configure()

    def configure(
        self, *, command: str = "", json_mode: bool = False, quiet: bool = False, debug: bool = False, rank: int = 0
    ) -> None:
        """Set the mode for a new command line.

        Args:
            command: The verb, for the JSON object.
            json_mode: Write one JSON object to stdout instead of tables.
            quiet: Leave out progress, notes, summaries and hints; results, warnings and errors stay.
            debug: Show tracebacks.
            rank: Number of the process in a distributed run; processes other than 0 print only errors.
        """
        self.command = command
        self.json_mode = json_mode
        self.quiet = quiet
        self.debug = debug
        self.rank = rank
        self._emitted = False

    @property
    def shows_progress(self) -> bool:
        """Whether progress bars are drawn: stderr is a terminal, and the mode is not quiet."""
        return not self.quiet and not self.debug and self.rank == 0 and sys.stderr.isatty()

    def result(self, data: Mapping[str, Any]) -> None:
        """Write the command's one JSON object if `--json` was given; otherwise do nothing.

        Raises:
            RuntimeError: If the command has written one already.
        """
        if not self.json_mode or self.rank:
            return
        if self._emitted:
            raise RuntimeError("Expected one JSON result for each command, but got a second one")
        self._emitted = True
        document = {"schema": JSON_SCHEMA, "command": self.command, **data}
        sys.stdout.write(json.dumps(_plain(document), ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print one line of the result."""
        if not self.json_mode:
            self._print(text)

    def text(self, part: str) -> None:
        """Print a part of a growing text, at once and without a line break."""
        if not self.json_mode and not self.rank:
            sys.stdout.write(readable.printable(part))
            sys.stdout.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        """Print a table; in quiet mode only its first column, whose cells are names that people copy.

        Numeric columns are aligned right. A column is numeric if each of its cells starts with a digit or a sign.

        Args:
            columns: Their headings.
            rows: Cells of each row.
            title: Title above the table.
            optional: Columns that are left out if there are any, one after the other, while the terminal is too narrow.
        """
        if self.json_mode:
            return
        if self.quiet:
            for row in rows:
                self._print(str(row[0]))
            return
        from rich import box
        from rich.table import Table

        cells = [[readable.printable(str(cell)) for cell in row] for row in rows]
        numeric = [bool(rows) and all(map(_looks_numeric, column)) for column in zip(*cells, strict=True)]
        numeric = numeric or [False] * len(columns)
        # Words are never broken, names and numbers are not even wrapped.
        least = [
            max(_longest_word(name), *(len(row[index]) if whole else _longest_word(row[index]) for row in cells), 0)
            for index, (name, whole) in enumerate(zip(columns, [True, *numeric[1:]], strict=True))
        ]
        shown, left = list(range(len(columns))), self.console(stderr=False).width - sum(least) - _GAP * len(columns) + 1
        for name in optional:
            if left < 0 and name in columns:
                shown.remove(columns.index(name))
                left += least[columns.index(name)] + _GAP
        table = Table(
            title=None if title is None else readable.printable(title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for index in shown:
            whole = max(len(columns[index]), *(len(row[index]) for row in cells), 0)
            more = min(whole - least[index], max(left, 0))
            table.add_column(
                columns[index],
                justify="right" if numeric[index] else "left",
                overflow="fold",
                width=least[index] + more if left >= 0 else None,
            )
            left -= more
        for row in cells:
            table.add_row(*(row[index] for index in shown))
        if title is not None:
            self._print("")
        self._print(table)
        if len(shown) < len(columns):
            missing = ", ".join(name for index, name in enumerate(columns) if index not in shown)
            self.note(f"a wider terminal, a pipe or --json also shows: {missing}")

    def fields(self, title: str, fields: Mapping[str, object]) -> None:
        """Print a titled list of names and values: a summary before or after the work of a command."""
        if self.json_mode or self.quiet:
            return
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in fields.items():
            grid.add_row(readable.printable(f"  {name}"), readable.printable(str(value)))
        self._print(Text(readable.printable(title), "bold"))
        self._print(grid)

    def note(self, text: str) -> None:
        """Print a message on stderr, one line."""
        if not self.quiet:
            self._print(text, stderr=True)

    def hint(self, text: str) -> None:
        """Suggest the next command, with the user's own arguments."""
        if not self.quiet and not self.json_mode and not self.rank:
            self._labelled("next", text, "green")

    def warning(self, text: str) -> None:
        """Print a warning on stderr, one line; the command continues."""
        if not self.rank:
            self._labelled("warning", " ".join(text.splitlines()), "yellow")

    def error(self, message: str, *, hint: str | None = None, exit_code: int = 1, kind: str = "Error") -> None:
        """Print the error that ends the command on stderr and, with `--json`, as the object on stdout.

        The message is one line, except that a list of mistakes has one line for each.
        """
        self._labelled("error", f"process {self.rank}: {message}" if self.rank else message, "red")
        if hint:
            self._labelled("hint", hint, "yellow")
        if self.json_mode and not self._emitted:
            self.result({"error": {"type": kind, "message": message, "hint": hint, "exit_code": exit_code}})

    def traceback(self, error: BaseException) -> None:
        """Print the traceback of an error to stderr."""
        sys.stderr.write("".join(traceback.format_exception(error)))

    @contextmanager
    def bar(self, description: str, total: int, *, start: int = 0) -> Iterator[Bar]:
        """Show a progress bar inside the context, if stderr is a terminal."""
        if not self.shows_progress:
            yield Bar(None, description, total)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, console=self.console(stderr=True), transient=True) as progress:
            bar = Bar(progress, description, total)
            bar.advance(start, total)
            yield bar

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[], None]]:
        """Show on a terminal what is awaited, until the context ends or the function that it gives is called."""
        if not self.shows_progress:
            yield lambda: None
            return
        with self.console(stderr=True).status(text) as status:
            yield status.stop

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Note that a file was written inside the context, or raise a `UsageError` if it could not be."""
        try:
            yield
        except OSError as error:
            raise UsageError(f"Expected to write {readable.path(path)}, but got: {error.strerror or error}") from error
        self.note(f"wrote {readable.path(path)}")

    def console(self, *, stderr: bool) -> "Console":
        """Return a console on the current standard stream; NO_COLOR and TERM are respected."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
        return Console(file=stream, highlight=False, width=width, markup=False, emoji=False)

    def _print(self, renderable: "RenderableType", *, stderr: bool = False) -> None:
        if self.rank:
            return
        if isinstance(renderable, str):
            stream = sys.stderr if stderr else sys.stdout
            stream.write(f"{readable.printable(renderable)}\n")
            stream.flush()
            return
        console = self.console(stderr=stderr)
        if console.is_terminal:
            console.print(renderable)
            return
        # Rich pads tables to a rectangle, which is a nuisance in files and pipes.
        with console.capture() as capture:
            console.print(renderable)
        self._print("\n".join(line.rstrip() for line in capture.get().splitlines()), stderr=stderr)

    def _labelled(self, label: str, text: str, colour: str) -> None:
        from rich.text import Text

        line = Text.assemble((f"{label}:", f"bold {colour}"), " ", readable.printable(text))
        self.console(stderr=True).print(line, soft_wrap=True)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _looks_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-+" or not cell


def _plain(value: object) -> object:
    """Convert a value to JSON types: NaN and infinities to null, paths to strings, dataclasses to objects."""
    if value is None or isinstance(value, str | int | float):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"Expected a value that JSON can hold, but got {type(value).__name__}")


out = Output()
"""The one output of the process; `main` configures it for each command line."""
