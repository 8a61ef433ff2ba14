"""The directory of a run: the names of its files, and checks that a run may start or resume in it."""

from pathlib import Path
from typing import Any

from cpt_deploy import readable
from cpt_deploy.bundle.processors.tokenization import FILE_NAME
from cpt_deploy.errors import CheckpointError, UsageError
from cpt_deploy.recipe import Recipe, load_recipe, save_recipe
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION, task_name
from cpt_deploy.training.run_directory.files import disk_errors

_MAY_CHANGE = {("model", "weights"), ("data", "root"), ("data", "workers"), ("data", "cache_mb"), ("train", "device")}
"""Settings that may differ in a resumed run, since they do not change the result; weights are checked by digest."""


class RunDirectory:
    """The files of a run.

    Args:
        path: The directory.

    Attributes:
        recipe: All settings as resolved.
        metrics: One row per log step and one per evaluation.
        tensorboard: TensorBoard's event files.
        curves: Loss, metric and bits over the steps.
        weights: The calibrated model at max_bits.
        report: The final report; it exists only if the run is finished.
        tokenizer: The vocabulary of a run on text.
        trace: The trace of the profiled steps, for a trace viewer.
        lock: The lock file, which exists while a process trains in the directory.
        last: The checkpoint to resume from.
        best: The checkpoint with the best evaluation so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.metrics, self.report = path / "recipe.yaml", path / "metrics.csv", path / "report.json"
        self.weights, self.tokenizer = path / "model.safetensors", path / FILE_NAME
        self.curves, self.tensorboard, self.trace = path / "curves.png", path / "tensorboard", path / "trace.json.gz"
        self.lock = path / "run.lock"
        self.last, self.best = (path / "checkpoints" / f"{name}.safetensors" for name in ("last", "best"))

    @property
    def kept(self) -> str:
        """What is left of the run if it stops now, as part of a sentence."""
        return f"the last good checkpoint is {self.last}" if self.last.is_file() else "there is no checkpoint yet"

    def check_new(self) -> None:
        """Make sure that a run can begin here.

        Raises:
            UsageError: If the directory is not empty, but for what a run has left that broke off while it began.
            DataError: If it cannot be read.
        """
        with disk_errors("the run", self.path):
            if self.path.exists() and (not self.path.is_dir() or not all(map(self._is_beginning, self.path.iterdir()))):
                raise UsageError(
                    f"Expected a new directory for the run, but {self.path} exists and is not empty",
                    hint=f"continue it: cpt train --resume {readable.argument(self.path)}; or name another directory",
                )

    def _is_beginning(self, path: Path) -> bool:
        """Return whether a file or folder is one that a run makes before it has a recipe."""
        partial = path.name == f".{self.recipe.name}.partial"
        return partial or path == self.lock or (path == self.last.parent and not any(path.iterdir()))

    def create(self) -> None:
        """Create the directory, or accept one where a run can begin.

        Raises:
            UsageError: If no run can begin there, see `check_new`.
            DataError: If it cannot be created.
        """
        self.check_new()
        with disk_errors("the run", self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def begin(self, recipe: Recipe) -> None:
        """Write the recipe into the directory, whose lock the process holds.

        Raises:
            UsageError: If the directory is not empty.
            DataError: If it cannot be written.
        """
        self.create()
        with disk_errors("the run", self.path):
            self.last.parent.mkdir(exist_ok=True)
        save_recipe(recipe, self.recipe)

    def check_resumable(self, recipe: Recipe) -> None:
        """Make sure that the directory holds a run of this recipe.

        Raises:
            CheckpointError: If there is no run in the directory.
            UsageError: If settings that change the result differ; all of them are listed.
        """
        if not self.recipe.is_file():
            raise CheckpointError(
                f"Expected a run to resume in {self.path}, but it has no recipe.yaml",
                hint="begin it without resuming",
            )
        begun = load_recipe(self.recipe).model_dump(mode="json")
        differences = list(_differences(begun, recipe.model_dump(mode="json"), ()))
        if differences:
            raise UsageError(
                f"Expected the settings that the run in {self.path} began with, but these differ: "
                + "; ".join(differences),
                hint=self._other_run(recipe, differences),
            )

    def _other_run(self, given: Recipe, differences: list[str]) -> str:
        """Return how to begin a run with other settings; one of another length can begin with this one's weights."""
        longer = any(line.startswith(("train.epochs ", "train.steps ")) for line in differences)
        if not longer or not self.report.is_file():
            return "begin a new run to change them"
        if task_name(given.data.task, given.data.name) != IMAGE_CLASSIFICATION:
            return "schedules depend on the length: begin a new run"
        length = f"epochs={given.train.epochs}" if given.train.steps is None else f"steps={given.train.steps}"
        begin = f"model.weights={readable.argument(self.path)}"
        if given.model.weights_sha256 is not None:
            begin += " model.weights_sha256=null"
        return (
            "schedules depend on the length, so train further in a new run that begins with this one's weights: "
            f"cpt train {readable.argument(self.recipe)} train.{length} {begin}"
        )


def _differences(begun: Any, given: Any, key: tuple[str, ...]) -> list[str]:
    if key in _MAY_CHANGE or begun == given:
        return []
    if isinstance(begun, dict) and isinstance(given, dict):
        names = dict.fromkeys([*begun, *given])
        return [line for name in names for line in _differences(begun.get(name), given.get(name), (*key, name))]
    return [f"{'.'.join(key)} was {begun!r}, is {given!r}"]
