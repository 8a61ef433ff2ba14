"""The interface of tasks, which workflows, commands and the trainer use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cpt_deploy.bundle import Bundle
from cpt_deploy.recipe import Recipe
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, ValidationOptions
from cpt_deploy.tasks.exporting import BitAllocation, ExportOptions, ExportSummary, Sensitivity
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    import torch

    from cpt_deploy.quantization import ScheduledModel
    from cpt_deploy.training import RunReport, TrainingTask

Entry = Mapping[str, Any]
"""Entry of sweep.json for an export: its bits, its bundle, and its measurements."""


class SavedRun(Protocol):
    """A finished run, read back."""

    @property
    def path(self) -> Path:
        """Directory of the run."""

    @property
    def recipe(self) -> Recipe:
        """All settings after resolving defaults."""

    @property
    def model(self) -> "ScheduledModel":
        """The calibrated model at max_bits, in evaluation mode, on the CPU."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of `model.safetensors`."""

    @property
    def report(self) -> "RunReport":
        """Content of `report.json`."""


class RunExport(Protocol):
    """One export of a run in steps, which change its model."""

    @property
    def run(self) -> SavedRun:
        """The run."""

    def change_ranges(self) -> bool:
        """Set the ranges of weights and activations as the options require, and return whether any changed."""

    def calibrate(self, bits: BitAllocation, reporter: Reporter) -> None:
        """Estimate activation ranges, and statistics if there are any, at these bits on training data."""

    def measure_sensitivity(self, candidates: Sequence[int], activation_bits: int, reporter: Reporter) -> Sensitivity:
        """Measure the cost of fewer bits in single layers, on samples outside of the test set.

        Args:
            candidates: Bits to try in each layer.
            activation_bits: Bits of the scheduled activations, at which the model was calibrated.
            reporter: Receives the progress after each layer.
        """

    def write(self, destination: Path, bits: BitAllocation) -> Bundle:
        """Freeze the model and write its bundle with its golden sample."""


B = TypeVar("B", bound=Bundle)


B_contra = TypeVar("B_contra", bound=Bundle, contravariant=True)


class SweptRun(Protocol[B_contra]):
    """A run whose exports are compared.

    Attributes:
        columns: Columns of the table, in the order of `row`.
        quality_label: Label of the plot's y axis, with its unit.
        latency_label: Description of the timed call.
    """

    columns: tuple[str, ...]
    quality_label: str
    latency_label: str

    @property
    def run(self) -> SavedRun:
        """The run."""

    @property
    def samples(self) -> int:
        """Number of samples of the test set that a validation measures."""

    def figures(self, bundle: B_contra) -> dict[str, Any]:
        """Return the figures of a validated bundle for sweep.json, besides its bits, sizes and integers."""

    def compare(self, bundles: Sequence[B_contra], rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Time all bundles alternately, and return the figures for sweep.json: of the reference, and of each bundle."""

    def summary(self, document: Mapping[str, Any]) -> str:
        """Describe the table in one line."""

    def row(self, entry: Entry, document: Mapping[str, Any]) -> tuple[str, ...]:
        """Return an export as a row of the table."""

    def quality(self, entry: Entry) -> tuple[float, float, float]:
        """Return an export's value on the plot's y axis, with the bounds of its interval."""

    def trained_quality(self, document: Mapping[str, Any]) -> float:
        """Return the same value of the trained model at max_bits."""


class Task(Protocol[B]):
    """A kind of model: how it is trained, exported, validated and called.

    Attributes:
        name: Name in `data.task` of a recipe, in `report.json` and in `config.json`.
        pipeline_tag: Name of the task on the Hugging Face Hub.
        unit: Name of the samples, in the plural.
        adapter: Import path, `module:Class`, of the server's adapter, if requests and answers are not just tensors by
            name; None stands for `cpt_serving.adapters.Adapter`.
    """

    name: str
    pipeline_tag: str
    unit: str
    adapter: str | None

    def knows(self, data: str) -> bool:
        """Return whether `data.name` of a recipe can only belong to this task."""

    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "TrainingTask":
        """Open the data of a recipe and resolve settings that depend on them, see `cpt_deploy.training.load_task`."""

    def open_bundle(self, path: Path) -> B:
        """Open a bundle.

        Raises:
            BundleError: If there is no bundle, or it is damaged.
        """

    def begin_export(self, run_dir: Path, options: ExportOptions, data_dir: Path | None) -> RunExport:
        """Load a run to export its model.

        Raises:
            UsageError: If the task does not support an option.
            CheckpointError: If the run is missing, unfinished or damaged.
            DataError: If its data are missing.
        """

    def describe_export(self, bundle: B) -> ExportSummary:
        """Describe the bundle, and whether onnxruntime on this machine reproduces its golden sample."""

    def check_validation(self, options: ValidationOptions) -> None:
        """Check the options of a validation.

        Raises:
            CptError: If the task does not support an option, or a package for it is missing.
        """

    def validate(
        self, bundle: B, options: ValidationOptions, origin: Origin, reporter: Reporter, *, require_exact: bool
    ) -> Evidence:
        """Measure a bundle, judge it against its origin, and store the evidence in it.

        Raises:
            CptError: If the data or the origin cannot be read.
        """

    def check_bundle(self, bundle: B, provider: str, *, require_exact: bool) -> BundleCheck:
        """Check a bundle without data: its golden sample in onnxruntime, and its files."""

    def sweep(self, run_dir: Path, data_dir: Path | None, limit: int | None) -> SweptRun[B]:
        """Load a run to compare its exports.

        Args:
            run_dir: The run.
            data_dir: Folder of its data; None is the recipe's.
            limit: Number of samples of the test set that a validation measures; None is all.

        Raises:
            CheckpointError: If the run is missing, unfinished or damaged.
        """

    def example_request(self, address: str) -> str:
        """Return arguments of curl for an example request to a served model.

        Args:
            address: Address of the server, with the path of the model if it serves several.
        """
