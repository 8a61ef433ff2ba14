"""The export of a run in steps: change ranges, calibrate, measure sensitivity, and write the bundle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cpt_deploy.bundle import Bundle, ImageProcessor
from cpt_deploy.errors import TrainingOnlyError, UsageError
from cpt_deploy.export import ModelIdentity, export_bundle
from cpt_deploy.quantization import calibrate, make_native, make_symmetric, measure_sensitivity
from cpt_deploy.tasks.exporting import (
    TRAINED_DIGEST,
    BitAllocation,
    ExportOptions,
    Sensitivity,
    dataset_name,
    shippable,
    without_folder,
)
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.reporting import Reporter
from cpt_deploy.training import TrainedRun, TrainingTask, load_run
from cpt_deploy.training.task import load_task
from cpt_deploy.validation import TRAINED_TEST, Recorded

SENSITIVITY_SAMPLES = 256
"""Number of training samples on which each layer's sensitivity is measured."""


@dataclass(frozen=True, eq=False)
class RunExport:
    """One export of a run; the steps change its model.

    Args:
        task: The task.
        run: The run; its recipe names the folder of the data.
        options: Options of the export.
    """

    task: Task
    run: TrainedRun
    options: ExportOptions

    def change_ranges(self) -> bool:
        """Set the ranges of weights and activations as the options require, and return whether any changed."""
        if self.options.symmetric:
            make_symmetric(self.run.model, self.options.activation_bits)
        if self.options.native:
            make_native(self.run.model)
        return self.options.native or self.options.symmetric

    def calibrate(self, bits: BitAllocation, reporter: Reporter) -> None:
        """Estimate activation ranges, and BatchNorm statistics if there are any, at these bits on training data."""
        batches = self._training().calibration_inputs()
        used = calibrate(self.run.model, batches, weight_bits=bits.weights, activation_bits=bits.activations)
        reporter.note(
            f"calibrated BatchNorm statistics and activation ranges with "
            f"{bits.describe(self.run.recipe.precision.max_bits)} on {used} training batches"
        )

    def measure_sensitivity(self, candidates: Sequence[int], activation_bits: int, reporter: Reporter) -> Sensitivity:
        """Measure how fewer bits in single layers change the outputs, on training samples.

        Args:
            candidates: Bits to try in each layer.
            activation_bits: Bits of the scheduled activations, at which the model was calibrated.
            reporter: Receives the progress after each layer.
        """
        model, training = self.run.model, self._training()
        batches = _first_samples(training.calibration_inputs(), SENSITIVITY_SAMPLES)
        scheduled = sum(layer.group != "fixed" for layer in model.layers())
        with reporter.bar("measuring sensitivity", scheduled) as bar:
            layers = measure_sensitivity(
                model,
                batches,
                candidates,
                divergence=training.divergence,
                activation_bits=activation_bits,
                progress=bar.advance,
            )
        return Sensitivity(layers, f"divergence of the outputs on {SENSITIVITY_SAMPLES} training samples")

    def write(self, destination: Path, bits: BitAllocation) -> Bundle:
        """Freeze the model and write its bundle with its golden sample."""
        run = self.run
        report, recipe = run.report, run.recipe
        root = None if recipe.data.root is None else Path(recipe.data.root)
        processor = run.processor
        if self.options.pixels is not None:
            if not isinstance(processor, ImageProcessor):
                raise UsageError(f"Expected --input uint8 with images only, but got it with the task {self.task.name}")
            processor = replace(processor, pixels=self.options.pixels)
        golden = self.task.golden_inputs(recipe.data.name, root, processor, run.model.signature)
        recorded = Recorded(
            report.figure, report.test.samples, dataset_name(recipe.data.name), report.data.get("test_sha256")
        )
        identity = ModelIdentity(
            name=recipe.name,
            architecture=without_folder(recipe.model.name),
            task=self.task.name,
            processor=processor,
            facts={
                "dataset": dataset_name(recipe.data.name),
                TRAINED_DIGEST: run.weights_sha256,
                f"trained_{report.metric.name}": report.figure,
                TRAINED_TEST: recorded.to_dict(),
                **bits.facts,
            },
            recipe=shippable(recipe),
            card=self.task.card(run),
        )
        return export_bundle(
            run.model,
            destination,
            identity,
            {name: torch.from_numpy(values) for name, values in golden.items()},
            weight_bits=bits.weights,
            activation_bits=bits.activations,
            opset=self.options.opset,
            formats=self.options.formats,
        )

    def _training(self) -> TrainingTask:
        return load_task(self.run.recipe, torch.device("cpu"))


def begin_export(task: Task, run_dir: Path, options: ExportOptions, data_dir: Path | None) -> RunExport:
    """Load a run to export its model.

    Args:
        task: The task of the run.
        run_dir: Its directory.
        options: Options of the export.
        data_dir: Folder of the data; None is the recipe's.

    Raises:
        CheckpointError: If the run is missing, unfinished or damaged.
        ConversionError: If the run is of the scheme "sbm", which trains only.
    """
    run = load_run(run_dir, data_dir=data_dir)
    if run.recipe.quantization.scheme == "sbm":
        raise TrainingOnlyError
    return RunExport(task, run, options)


def _first_samples(batches: Iterator[Any], count: int) -> list[Any]:
    """Return the first batches that have `count` samples, the last one shortened, or all if there are fewer."""
    taken: list[Any] = []
    missing = count
    for batch in batches:
        tensors = batch if isinstance(batch, dict) else {"": batch}
        cut = {name: tensor[:missing] for name, tensor in tensors.items()}
        missing -= len(next(iter(cut.values())))
        taken.append(cut if isinstance(batch, dict) else cut[""])
        if missing <= 0:
            break
    return taken
