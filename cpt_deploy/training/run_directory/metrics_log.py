"""The log of a run: `metrics.csv`, and TensorBoard events if TensorBoard is installed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_deploy.training.reports import Evaluation
from cpt_deploy.training.run_directory.files import disk_errors, write_atomically
from cpt_deploy.training.run_directory.run_directory import RunDirectory

_STEPS = (
    "step",  # finished steps
    "epoch",  # finished epochs, as a fraction
    "lr",
    "bits",  # forward, of the last step
    "grad_bits",
    "group_bits",  # forward, of groups of layers with their own schedule, in the recipe's order: "group1=4 group2=6"
    "loss",  # mean over the steps since the last row; after it the task's metrics of training batches
)
_COSTS = (
    "gbitops",  # total so far
    "images_per_s",  # samples of any kind
    "data_share",  # share of the time since the last row spent waiting for batches
    "step_ms",  # median time of a step at `bits` so far, without waiting for its batch
    "memory_mb",  # peak of memory in steps at `bits` so far: allocated on a GPU, of the whole process on a CPU
    "seconds",  # since the run began, without interruptions
    "test_loss",  # at max_bits; only in rows of evaluations; after it the task's metrics of held-out samples
)
_LAST = ("calibrated",)  # 1 in the row of the final evaluation

_RUN_TAGS = ("lr", "bits", "grad_bits", "gbitops", "images_per_s", "data_share", "step_ms")
_NO_TAGS = ("step", "epoch", "group_bits", "memory_mb", "seconds", "calibrated")


def columns_of(train_metrics: Sequence[str], test_metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a log: those of every run, and the metrics of the run's task.

    Args:
        train_metrics: Names of the metrics of training batches.
        test_metrics: Names of the metrics of evaluations, whose columns begin with "test_".
    """
    return (*_STEPS, *train_metrics, *_COSTS, *(f"test_{name}" for name in test_metrics), *_LAST)


class MetricsLog:
    """Appends rows; a resumed run first drops the rows after its checkpoint.

    Args:
        directory: The run's directory.
        columns: See `columns_of`.
        first_step: Number of finished steps at the checkpoint, 0 for a new run.
        after_evaluation: Whether the evaluation of that step is in the checkpoint; if not, its row is dropped too.

    Raises:
        DataError: If the log cannot be written; so do the methods.
    """

    def __init__(
        self, directory: RunDirectory, columns: Sequence[str], first_step: int, *, after_evaluation: bool
    ) -> None:
        self.path, self.columns = directory.metrics, columns
        kept = _kept_rows(self.path, columns, first_step, after_evaluation=after_evaluation)
        with disk_errors("metrics", self.path):
            write_atomically(self.path, kept.encode())
            self._file = self.path.open("a", newline="", encoding="utf-8")
        self._board = _open_board(directory.tensorboard, first_step)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write one row; columns without a value stay empty, and `group_bits` is a mapping.

        Raises:
            ValueError: If there is a value for a column that does not exist.
        """
        groups: Mapping[str, int] = row.get("group_bits") or {}
        written = {**row, "group_bits": " ".join(f"{name}={bits}" for name, bits in groups.items())}
        scalars = {_tag(name): row[name] for name in self.columns if name not in _NO_TAGS and row.get(name) is not None}
        scalars |= {f"run/bits/{name}": bits for name, bits in groups.items()}
        with disk_errors("metrics", self.path):
            csv.DictWriter(self._file, self.columns, lineterminator="\n").writerow(written)
            self._file.flush()
            for tag, value in scalars.items() if self._board is not None else ():
                self._board.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Flush and close the files."""
        with disk_errors("metrics", self.path):
            self._file.close()
            if self._board is not None:
                self._board.close()


class NoLog:
    """The log of a process that writes no files."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics file, except for a truncated last row."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


def evaluation_columns(evaluation: Evaluation) -> dict[str, float | None]:
    """Return an evaluation as columns of `metrics.csv`."""
    return {
        "test_loss": evaluation.loss,
        **{f"test_{name}": value for name, value in evaluation.metrics.items()},
        "calibrated": 1 if evaluation.calibrated else None,
    }


def _tag(column: str) -> str:
    """Return the TensorBoard tag of a column."""
    if column.startswith("test_"):
        return column.replace("_", "/", 1)
    return f"{'run' if column in _RUN_TAGS else 'train'}/{column}"


def _kept_rows(path: Path, columns: Sequence[str], first_step: int, *, after_evaluation: bool) -> str:
    rows = read_metrics(path) if path.is_file() else []
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        is_evaluation = row["test_loss"] != ""
        late = is_evaluation and int(row["step"]) == first_step and (row["calibrated"] != "" or not after_evaluation)
        if int(row["step"]) <= first_step and not late:
            writer.writerow(row)
    return text.getvalue()


def _open_board(path: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with disk_errors("TensorBoard events", path):
        return SummaryWriter(str(path), purge_step=first_step + 1 if first_step else None)
