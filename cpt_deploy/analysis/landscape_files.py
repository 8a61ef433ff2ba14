"""The directory of a landscape: its settings and the points measured so far, so that a measurement can be resumed."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cpt_deploy.analysis.landscape import Grid, Landscape, Point, Value
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.training import disk_errors, write_atomically

COLUMNS = ("run", "x", "y", "loss", "accuracy")


@dataclass(frozen=True)
class LandscapeSettings:
    """The settings of a landscape.

    Args:
        grid: The points.
        seed: Seed of directions and images.
        split: "train" or "test".
        images: Number of images.
        runs: SHA-256 of the weights of each run, by the run's name in the files.
    """

    grid: Grid
    seed: int
    split: str
    images: int
    runs: Mapping[str, str]


class LandscapeFiles:
    """`landscape.json` and `landscape.csv` of a directory.

    Args:
        folder: The directory; it is created if it does not exist.
        settings: The settings of the measurement.

    Raises:
        UsageError: If it has a landscape of other settings; the message lists the differences.
        DataError: If files cannot be read or written; the methods raise it too.
    """

    def __init__(self, folder: Path, settings: LandscapeSettings) -> None:
        self.folder, self.settings = folder, settings
        self.table = folder / "landscape.csv"
        described = folder / "landscape.json"
        if described.is_file():
            _check_same(described, settings)
        with disk_errors("the landscape", folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not described.is_file():
                write_atomically(described, (json.dumps(asdict(settings), indent=1) + "\n").encode())
                self._write([])
        self.known = self._read()

    def append(self, run: str, point: Point, value: Value) -> None:
        """Append a point at once, so that it survives an interruption."""
        with disk_errors("the landscape", self.table), self.table.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow((run, *point, *value))

    def finish(self, landscapes: Mapping[str, Landscape]) -> None:
        """Write all points in order."""
        rows: list[tuple[object, ...]] = [
            (run, *point, *found.values[point]) for run, found in landscapes.items() for point in found.grid
        ]
        with disk_errors("the landscape", self.table):
            self._write(rows)

    def _write(self, rows: Sequence[tuple[object, ...]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((COLUMNS, *rows))
        write_atomically(self.table, text.getvalue().encode())

    def _read(self) -> dict[str, dict[Point, Value]]:
        """Return the points of each run; an incomplete last line is skipped and removed from the file."""
        known: dict[str, dict[Point, Value]] = {run: {} for run in self.settings.runs}
        try:
            with self.table.open(newline="", encoding="utf-8") as file:
                lines = file.readlines()
            whole = [line for line in lines if line.endswith("\n")]
            for row in csv.DictReader(whole):
                point = Point(float(row["x"]), float(row["y"]))
                known[row["run"]][point] = Value(float(row["loss"]), float(row["accuracy"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"Expected the points of a landscape in {self.table}, but got: {error!r}",
                hint=f"delete {self.folder} to start again",
            ) from error
        if len(whole) < len(lines):
            with disk_errors("the landscape", self.table):
                write_atomically(self.table, "".join(whole).encode())
        return known


def _check_same(described: Path, settings: LandscapeSettings) -> None:
    try:
        begun = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Expected the settings of a landscape in {described}, but got: {error}") from error
    given = json.loads(json.dumps(asdict(settings)))
    differing = [name for name in given if not isinstance(begun, dict) or begun.get(name) != given[name]]
    if differing:
        values = "; ".join(
            f"{name} was {begun.get(name) if isinstance(begun, dict) else None}, is {given[name]}" for name in differing
        )
        raise UsageError(
            f"Expected the settings that the landscape in {described.parent} began with, but these differ: {values}",
            hint="name another directory with --out",
        )
