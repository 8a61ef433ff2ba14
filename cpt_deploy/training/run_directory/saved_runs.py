"""Load a finished run: the calibrated model and everything else that export and validation need."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.bundle.processors.tokenization import Tokenizer, read_tokenizer
from cpt_deploy.errors import CheckpointError, UsageError
from cpt_deploy.quantization import QuantizedLanguageModel, QuantizedModel, ScheduledModel
from cpt_deploy.recipe import Recipe, load_recipe
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION, TEXT_GENERATION
from cpt_deploy.training.loop.setup import build_cpt_model, build_quantized_language_model
from cpt_deploy.training.reporting.reports import RunReport
from cpt_deploy.training.run_directory.run_directory import RunDirectory


@dataclass(frozen=True)
class TrainedRun:
    """A finished run of an image classifier.

    Args:
        path: Its directory.
        recipe: All settings as resolved.
        model: The calibrated model at max_bits, in evaluation mode, on the CPU.
        classes: Names of the classes.
        preprocessing: How an image becomes an input.
        weights_sha256: SHA-256 of `model.safetensors`.
        report: The content of `report.json`.
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
        CptError: If its model cannot be built here, for example because a user-defined module is missing.
    """
    directory, recipe, report = _read_run(run_dir)
    if report.task != IMAGE_CLASSIFICATION:
        raise UsageError(f"Expected a run that classifies images in {run_dir}, but got one of a {report.task}")
    content, digest = _verified_weights(directory, report)
    preprocessing = Preprocessing.from_dict(report.preprocessing)
    with torch.random.fork_rng(devices=[]):
        model = build_cpt_model(recipe, len(report.classes), preprocessing, trained=True)
    _load_weights(model, content, recipe, directory)
    return TrainedRun(run_dir, recipe, model, report.classes, preprocessing, digest, report)


@dataclass(frozen=True)
class TrainedLanguageModel:
    """A finished run of a language model.

    Args:
        path: Its directory.
        recipe: All settings as resolved.
        model: The calibrated model at max_bits, in evaluation mode, on the CPU.
        tokenizer: Its vocabulary.
        weights_sha256: SHA-256 of `model.safetensors`.
        report: The content of `report.json`.
    """

    path: Path
    recipe: Recipe
    model: QuantizedLanguageModel
    tokenizer: Tokenizer
    weights_sha256: str
    report: RunReport


def load_language_model(run_dir: Path) -> TrainedLanguageModel:
    """Load a finished run of a language model; its files are verified against the report first.

    Raises:
        CheckpointError: If the run is missing, unfinished, or damaged, or its vocabulary is not the one it began with.
        UsageError: If it is a run of an image classifier.
    """
    directory, recipe, report = _read_run(run_dir)
    if report.task != TEXT_GENERATION:
        raise UsageError(f"Expected a run of a language model in {run_dir}, but got one of {report.task}")
    content, digest = _verified_weights(directory, report)
    tokenizer = read_tokenizer(directory.tokenizer)
    known = report.data["vocabulary"]
    digest_of_words = hashlib.sha256(directory.tokenizer.read_bytes()).hexdigest()
    if tokenizer.size != known["size"] or digest_of_words != known["sha256"]:
        raise CheckpointError(
            f"Expected the vocabulary of {known['size']} tokens that the model was trained with at "
            f"{directory.tokenizer}, but got another one, of {tokenizer.size} tokens",
            hint="copy the run's own tokenizer.json back",
        )
    with torch.random.fork_rng(devices=[]):
        model = build_quantized_language_model(recipe, tokenizer.size)
    _load_weights(model, content, recipe, directory)
    return TrainedLanguageModel(run_dir, recipe, model, tokenizer, digest, report)


def _read_run(run_dir: Path) -> tuple[RunDirectory, Recipe, RunReport]:
    directory = RunDirectory(run_dir)
    if not directory.recipe.is_file():
        raise CheckpointError(
            f"Expected a run in {run_dir}, but it has no recipe.yaml",
            hint="runs are the directories that cpt train writes",
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


def _load_weights(model: ScheduledModel, content: bytes, recipe: Recipe, directory: RunDirectory) -> None:
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
