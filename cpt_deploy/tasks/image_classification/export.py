"""Export the run of a classifier to a bundle: calibration batches, sensitivity, golden images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cpt_deploy.bundle import Bundle, ImageProcessor, Preprocessing
from cpt_deploy.data import ImageSet, recipe_images
from cpt_deploy.export import ModelIdentity, export_bundle
from cpt_deploy.quantization import calibrate, make_native, make_symmetric, measure_sensitivity
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
from cpt_deploy.tasks.exporting import (
    TRAINED_DIGEST,
    BitAllocation,
    ExportOptions,
    Sensitivity,
    dataset_name,
    shippable,
)
from cpt_deploy.tasks.reporting import Reporter
from cpt_deploy.training import TrainedRun, calibration_inputs, load_run
from cpt_deploy.validation.accuracy.reference import TRAINED_TEST

GOLDEN_IMAGES = 8
SENSITIVITY_IMAGES = 256
"""Number of training images on which each layer's sensitivity is measured."""


@dataclass(frozen=True)
class ImageExport:
    """See `RunExport`."""

    run: TrainedRun
    options: ExportOptions

    def change_ranges(self) -> bool:
        """See `RunExport`."""
        if self.options.symmetric:
            make_symmetric(self.run.model, self.options.activation_bits)
        if self.options.native:
            make_native(self.run.model)
        return self.options.native or self.options.symmetric

    def calibrate(self, bits: BitAllocation, reporter: Reporter) -> None:
        """Estimate BatchNorm statistics and activation ranges again, see `RunExport`."""
        run = self.run
        used = calibrate(run.model, _training_inputs(run), weight_bits=bits.weights, activation_bits=bits.activations)
        reporter.note(
            f"calibrated BatchNorm statistics and activation ranges with "
            f"{bits.describe(run.recipe.precision.max_bits)} "
            f"on {used} training batches"
        )

    def measure_sensitivity(self, candidates: Sequence[int], activation_bits: int, reporter: Reporter) -> Sensitivity:
        """Measure how fewer bits change the class probabilities, see `RunExport`."""
        model = self.run.model
        batches = _first_batches(_training_inputs(self.run))
        scheduled = sum(layer.role != "fixed" for layer in model.layers())
        with reporter.bar("measuring sensitivity", scheduled) as bar:
            layers = measure_sensitivity(
                model, batches, candidates, activation_bits=activation_bits, progress=bar.advance
            )
        return Sensitivity(layers, "divergence", {"sensitivity_images": sum(len(batch) for batch in batches)})

    def write(self, destination: Path, bits: BitAllocation) -> Bundle:
        """See `RunExport`."""
        run = self.run
        identity = ModelIdentity(
            name=run.recipe.name,
            architecture=run.recipe.model.name,
            task=IMAGE_CLASSIFICATION,
            processor=ImageProcessor(run.preprocessing, tuple(run.classes)),
            facts={
                "dataset": dataset_name(run.recipe.data.name),
                TRAINED_DIGEST: run.weights_sha256,
                "trained_accuracy": run.report.figure,
                TRAINED_TEST: {"samples": run.report.test.samples, "sha256": run.report.data.get("test_sha256")},
                **bits.facts,
            },
            recipe=shippable(run.recipe),
        )
        test_images = recipe_images(run.recipe.data.model_copy(update={"limit": None}), "test")
        return export_bundle(
            run.model,
            destination,
            identity,
            evenly_chosen_inputs(test_images, run.preprocessing),
            weight_bits=bits.weights,
            activation_bits=bits.activations,
            opset=self.options.opset,
            formats=self.options.formats,
        )


def begin_export(run_dir: Path, options: ExportOptions, data_dir: Path | None) -> ImageExport:
    """Load a run to export its model, see `Task`."""
    run = load_run(run_dir)
    if data_dir is not None:
        data = run.recipe.data.model_copy(update={"root": str(data_dir)})
        run = replace(run, recipe=run.recipe.model_copy(update={"data": data}))
    return ImageExport(run, options)


def evenly_chosen_inputs(images: ImageSet, preprocessing: Preprocessing) -> Tensor:
    """Return a few images as normalised inputs, evenly spaced in the set since many sets are sorted by class."""
    chosen = np.linspace(0, len(images) - 1, min(GOLDEN_IMAGES, len(images))).astype(int)
    return torch.from_numpy(np.stack([preprocessing.apply(images.image(int(index))) for index in chosen]))


def _training_inputs(run: TrainedRun) -> Iterator[Tensor]:
    return calibration_inputs(run.recipe, run.preprocessing)


def _first_batches(batches: Iterator[Tensor]) -> list[Tensor]:
    """Return the first batches that have enough images to measure sensitivity, or all if there are fewer."""
    taken: list[Tensor] = []
    missing = SENSITIVITY_IMAGES
    for batch in batches:
        taken.append(batch[:missing])
        missing -= len(taken[-1])
        if missing <= 0:
            break
    return taken
