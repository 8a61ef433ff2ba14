"""Reads a finished run back: the settled model and everything that export and validation need with it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.errors import CheckpointError
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.recipe import Recipe, load_recipe
from cpt_deploy.training.reports import RunReport
from cpt_deploy.training.run_directory import RunDirectory
from cpt_deploy.training.setup import build_cpt_model


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Args:
        path: Its directory.
        recipe: All settings as resolved.
        model: The settled model at its upper bound, in evaluation mode, on the CPU.
        classes: Names of the classes.
        preprocessing: How an image becomes an input.
        weights_sha256: SHA-256 of `model.safetensors`.
        report: What `report.json` holds.
    """

    path: Path
    recipe: Recipe
    model: QuantizedModel
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights_sha256: str
    report: RunReport


def load_run(run_dir: Path) -> TrainedRun:
    """Load a finished run; its files are verified against the report first.

    Raises:
        CheckpointError: If the run is missing, unfinished, or damaged.
        CptError: If its model cannot be built here, for example since the user's own module is missing.
    """
    directory = RunDirectory(run_dir)
    if not directory.recipe.is_file():
        raise CheckpointError(
            f"Expected a run in {run_dir}, but it has no recipe.yaml",
            hint="runs are the directories that cpt train writes",
        )
    recipe = load_recipe(directory.recipe)
    report = RunReport.read(directory.report)
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
    preprocessing = Preprocessing.from_dict(report.preprocessing)
    with torch.random.fork_rng(devices=[]):
        model = build_cpt_model(recipe, len(report.classes), preprocessing)
    try:
        model.load_state_dict(load(content))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected the weights of model {recipe.model.name!r} in {directory.weights}, "
            f"but got: {str(error).splitlines()[0]}"
        ) from error
    model.eval()
    model.set_bits(recipe.precision.upper, recipe.precision.grad_upper)
    return TrainedRun(run_dir, recipe, model, report.classes, preprocessing, digest, report)
