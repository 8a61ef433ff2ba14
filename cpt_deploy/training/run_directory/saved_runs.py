"""Load a finished run: the calibrated model and everything else that export and validation need."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cpt_deploy import readable
from cpt_deploy.bundle import Processor
from cpt_deploy.errors import CheckpointError, UsageError
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.recipe import Recipe, load_recipe
from cpt_deploy.recipe.tasks import tasks
from cpt_deploy.training.reports import RunReport
from cpt_deploy.training.run_directory.run_directory import RunDirectory

P = TypeVar("P", bound=Processor)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run.

    Args:
        path: Its directory.
        recipe: All settings as resolved.
        model: The calibrated model at max_bits, in evaluation mode, on the CPU.
        processor: The processor of its inputs and answers.
        weights_sha256: SHA-256 of `model.safetensors`.
        report: The content of `report.json`.
    """

    path: Path
    recipe: Recipe
    model: QuantizedModel
    processor: Processor
    weights_sha256: str
    report: RunReport

    def expect_processor(self, kind: type[P]) -> P:
        """Return the processor if it is of a class.

        Raises:
            UsageError: If it is of another one, since the run is of another task.
        """
        if not isinstance(self.processor, kind):
            raise UsageError(
                f"Expected a run with a {kind.__name__}, but {self.path} is of the task {self.report.task}"
            )
        return self.processor


def load_run(run_dir: Path, *, data_dir: Path | None = None) -> TrainedRun:
    """Load a finished run of any task; its files are verified against the report first.

    Args:
        run_dir: The directory of the run.
        data_dir: Folder of its data; None is the recipe's.

    Raises:
        CheckpointError: If the run is missing, unfinished, or damaged.
        CptError: If its model cannot be built here, for example because a user-defined module is missing.
    """
    directory, recipe, report = _read_run(run_dir)
    if data_dir is not None:
        data = recipe.data.model_copy(update={"root": str(data_dir)})
        recipe = recipe.model_copy(update={"data": data})
    content, digest = _verified_weights(directory, report)
    task: Any = tasks.get(report.task)
    processor = task.read_processor(report, directory)
    with torch.random.fork_rng(devices=[]):
        model = task.build_model(recipe, processor)
    _load_weights(model, content, recipe, directory)
    return TrainedRun(run_dir, recipe, model, processor, digest, report)


def _read_run(run_dir: Path) -> tuple[RunDirectory, Recipe, RunReport]:
    directory = RunDirectory(run_dir)
    if not directory.recipe.is_file():
        is_onnx = run_dir.suffix == ".onnx" and run_dir.is_file()
        raise CheckpointError(
            f"Expected a run in {run_dir}, but it {'is a file' if is_onnx else 'has no recipe.yaml'}",
            hint=f"cpt export --from {readable.argument(run_dir)} --data inputs.npz makes a bundle of an ONNX file"
            if is_onnx
            else "runs are the directories that cpt train writes",
        )
    return directory, load_recipe(directory.recipe), RunReport.read(directory.report)


def _verified_weights(directory: RunDirectory, report: RunReport) -> tuple[bytes, str]:
    try:
        content = directory.weights.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Expected weights at {directory.weights}, but got: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != report.weights_sha256:
        raise CheckpointError(
            f"Expected {directory.weights} to agree with the SHA-256 in report.json, but it does not: it is damaged",
            hint=f"delete {directory.report} and resume the run; its last checkpoint gives the weights again",
        )
    return content, digest


def _load_weights(model: QuantizedModel, content: bytes, recipe: Recipe, directory: RunDirectory) -> None:
    """Load the calibrated weights and set the model to evaluation mode at max_bits."""
    try:
        model.load_state_dict(load(content))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected the weights of model {recipe.model.name!r} in {directory.weights}, "
            f"but got: {str(error).splitlines()[0]}"
        ) from error
    model.eval()
    model.set_bits(recipe.precision.max_bits, recipe.precision.grad_max_bits)
