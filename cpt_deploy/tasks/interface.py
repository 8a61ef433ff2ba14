"""The one interface in which kinds of models differ: what workflows, commands and the trainer ask of a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.recipe import Recipe
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, ValidationOptions
from cpt_deploy.tasks.exporting import BitAllocation, ExportOptions, ExportSummary, Sensitivity
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    import torch

    from cpt_deploy.quantization import ScheduledModel
    from cpt_deploy.training import RunReport, TrainingTask

Entry = Mapping[str, Any]
"""What sweep.json says of an export: its bits, its bundle, and what was measured of it."""


class SavedRun(Protocol):
    """A finished run, read back."""

    @property
    def path(self) -> Path:
        """Its directory."""

    @property
    def recipe(self) -> Recipe:
        """All settings as resolved."""

    @property
    def model(self) -> "ScheduledModel":
        """The calibrated model at max_bits, in evaluation mode, on the CPU."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of `model.safetensors`."""

    @property
    def report(self) -> "RunReport":
        """What `report.json` holds."""


class RunExport(Protocol):
    """One export of a run, step by step; its model changes on the way."""

    @property
    def run(self) -> SavedRun:
        """The run."""

    def change_ranges(self) -> bool:
        """Give weights and activations the ranges that were asked for, and return whether any changed."""

    def calibrate(self, bits: BitAllocation, reporter: Reporter) -> None:
        """Estimate activation ranges, and statistics if there are any, anew at these bits on training data."""

    def measure_sensitivity(self, candidates: Sequence[int], activation_bits: int, reporter: Reporter) -> Sensitivity:
        """Measure what fewer bits in one layer alone do, on samples that the test set does not have.

        Args:
            candidates: Bits to try in each layer.
            activation_bits: Bits of the scheduled activations, at which the model was calibrated.
            reporter: Hears of each layer.
        """

    def write(self, destination: Path, bits: BitAllocation) -> OpenedBundle:
        """Freeze the model and write its bundle with its golden sample."""


B = TypeVar("B", bound=OpenedBundle)


B_contra = TypeVar("B_contra", bound=OpenedBundle, contravariant=True)


class SweptRun(Protocol[B_contra]):
    """A run whose exports are put side by side.

    Attributes:
        columns: Of the table, as `row` fills them.
        quality_label: What the plot's y axis is, with its unit.
        latency_label: What is timed.
    """

    columns: tuple[str, ...]
    quality_label: str
    latency_label: str

    @property
    def run(self) -> SavedRun:
        """The run."""

    @property
    def samples(self) -> int:
        """How much of the test set a validation measures."""

    def figures(self, bundle: B_contra) -> dict[str, Any]:
        """Return what sweep.json says of a validated bundle, beside its bits, sizes and integers."""

    def compare(self, bundles: Sequence[B_contra], rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Time all in turn, and return what sweep.json says of what they are compared with, and of each."""

    def summary(self, document: Mapping[str, Any]) -> str:
        """Return what the table is of, as one line."""

    def row(self, entry: Entry, document: Mapping[str, Any]) -> tuple[str, ...]:
        """Return an export as a row of the table."""

    def quality(self, entry: Entry) -> tuple[float, float, float]:
        """Return an export's place on the plot's y axis, with the ends of its interval."""

    def trained_quality(self, document: Mapping[str, Any]) -> float:
        """Return the same of the trained model at max_bits."""


class Task(Protocol[B]):
    """A kind of model: how it is trained, exported, judged and asked.

    Attributes:
        name: As `data.task` of a recipe, `report.json` and `config.json` have it.
        pipeline_tag: As the Hub has it.
        unit: What a sample is, in the plural.
    """

    name: str
    pipeline_tag: str
    unit: str

    def knows(self, data: str) -> bool:
        """Return whether `data.name` of a recipe can only be meant for this task."""

    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "TrainingTask":
        """Open the data of a recipe and resolve what it leaves to them, see `cpt_deploy.training.load_task`."""

    def open_bundle(self, path: Path) -> B:
        """Open a bundle.

        Raises:
            BundleError: If there is none, or it is damaged.
        """

    def begin_export(self, run_dir: Path, options: ExportOptions, data_dir: Path | None) -> RunExport:
        """Read a run whose model is to be exported.

        Raises:
            UsageError: If the task has no form for what is asked.
            CheckpointError: If the run is missing, unfinished or damaged.
            DataError: If its data are missing.
        """

    def describe_export(self, bundle: B) -> ExportSummary:
        """Say what was exported, and whether onnxruntime on this machine reproduces its golden sample."""

    def check_validation(self, options: ValidationOptions) -> None:
        """Make sure that a validation can be what is asked for.

        Raises:
            CptError: Otherwise.
        """

    def validate(
        self, bundle: B, options: ValidationOptions, origin: Origin, reporter: Reporter, *, require_exact: bool
    ) -> Evidence:
        """Measure a bundle, judge it against what it comes from, and store the evidence in it.

        Raises:
            CptError: If the data or what it comes from cannot be read.
        """

    def check_bundle(self, bundle: B, provider: str, *, require_exact: bool) -> BundleCheck:
        """Check a bundle by itself: its golden sample in onnxruntime, and what else needs no data."""

    def sweep(self, run_dir: Path, data_dir: Path | None, limit: int | None) -> SweptRun[B]:
        """Read a run whose exports are to be put side by side.

        Args:
            run_dir: The run.
            data_dir: Folder that holds its data; the recipe's if None.
            limit: How many samples of the test set a validation measures; all if None.

        Raises:
            CheckpointError: If the run is missing, unfinished or damaged.
        """

    def example_request(self, address: str) -> str:
        """Return what to tell curl to ask a served model something.

        Args:
            address: The server's, with the path of the model if it has several.
        """
