"""Plan, step progress, evaluations and final report of a run, and the reporter interface that receives them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cpt_deploy import readable
from cpt_deploy.errors import CheckpointError
from cpt_deploy.metric import ACCURACY, Metric
from cpt_deploy.recipe import Recipe

if TYPE_CHECKING:
    from cpt_deploy.models.torchvision_models import Normalization
    from cpt_deploy.quantization.state.conversion import Conversion

REPORT_VERSION = 2


@dataclass(frozen=True)
class Pretrained:
    """The pretrained weights that a run started from.

    Args:
        file: Path of the weights.
        sha256: SHA-256 of the file.
        tensors: Number of loaded tensors.
        head: Name of the layer that outputs the logits.
        fresh: Tensors of the head that keep their initialisation, since the file's are for other classes.
        classes: Number of classes of the file's head.
        left_out: Paths of the file's auxiliary heads, used only in training, which the network is built without.
        published_input: Input normalisation of torchvision's published weights of this model, if the run's images are
            normalised differently.
    """

    file: str
    sha256: str
    tensors: int
    head: str | None
    fresh: tuple[str, ...]
    classes: int | None
    left_out: tuple[str, ...] = ()
    published_input: "Normalization | None" = None


@dataclass(frozen=True)
class TrainPlan:
    """The plan of a run.

    Args:
        run_dir: Its directory.
        recipe: All settings as resolved.
        device: "cpu" or "cuda:0".
        processes: Number of processes that train together.
        workers: Loading processes of each of them.
        parameters: Number of trainable parameters.
        macs: Multiply-accumulates per sample in the quantized layers.
        layers: Number of quantized layers by group: "scheduled", "fixed", and the names of groups.
        train_images: Number of training samples: images, or tokens.
        test_images: Number of test samples.
        classes: Number of classes, or size of the vocabulary.
        steps_per_epoch: Batches per epoch.
        total_steps: Number of steps of the run.
        first_step: 0, or the step at which a resumed run continues.
        unit: The kind of samples, in the plural: "images", "tokens".
        metric: The task's metric.
        held_out: Name of the split that evaluations during training are on.
        pretrained: The pretrained weights; `None` if training starts from random weights.
        left_out: Number of unused files in the data set, by their type or the reason.
        divided: Whether the data had no splits and were divided into training and test samples.
        doubts: Reasons why the run may teach nothing, each with the setting that changes it.
        conversion: How the network was converted, and why.
        recommended: Whether min_bits were left to the length of the run.
        relative_cost: BitOPs relative to static precision at max_bits; `None` if a schedule depends on the loss.
    """

    run_dir: Path
    recipe: Recipe
    device: str
    parameters: int
    macs: int
    layers: Mapping[str, int]
    train_images: int
    test_images: int
    classes: int
    steps_per_epoch: int
    total_steps: int
    first_step: int
    relative_cost: float | None
    processes: int = 1
    workers: int = 0
    unit: str = "images"
    metric: Metric = ACCURACY
    held_out: str = "test"
    pretrained: Pretrained | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    divided: bool = False
    doubts: Sequence[str] = ()
    conversion: "Conversion | None" = None
    recommended: bool = False


@dataclass(frozen=True)
class StepProgress:
    """One finished step.

    Args:
        step: Number of finished steps.
        total_steps: Number of steps of the run.
        epoch: The epoch of this step, from 0.
        bits: Forward bits of this step.
        grad_bits: Gradient bits of this step.
        lr: Learning rate of this step.
        loss: Mean training loss of the last log interval; `None` before there is one.
        accuracy: Top-1 accuracy on training batches in the last log interval, 0 to 1; `None` if the task has none.
        images_per_s: Throughput in the last log interval, in images or tokens.
        data_share: Share of the time spent waiting for batches in the last log interval, 0 to 1.
    """

    step: int
    total_steps: int
    epoch: int
    bits: int
    grad_bits: int
    lr: float
    loss: float | None
    accuracy: float | None
    images_per_s: float | None
    data_share: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of the model at max_bits on held-out samples.

    Args:
        step: Number of finished steps.
        loss: Mean loss.
        metrics: Further figures by name, among them the task's metric.
        samples: Number of samples.
        seconds: Time it took.
        calibrated: Whether it is the final one, after calibration.
        best: Whether it is the best of the run so far (the final one is not compared).
    """

    step: int
    loss: float
    metrics: Mapping[str, float]
    samples: int
    seconds: float
    calibrated: bool = False
    best: bool = False


@dataclass(frozen=True)
class RunReport:
    """The result of a run, as `report.json` holds it.

    Args:
        name: The recipe's name.
        model: Name, parameters, MACs, quantized layers by group, how it was converted and why, and its pretrained
            weights, if any.
        data: Name, numbers of images, and digests of the data set if it is in memory.
        classes: Names of the classes; none if the task has no classes.
        preprocessing: How a sample becomes an input; of images see `Preprocessing.from_dict`.
        bits: The min_bits and max_bits, the schedules' names, and the share of steps at each number of bits.
        steps: Number of steps.
        epochs: Number of epochs.
        test: The final evaluation of the calibrated model.
        task: Name of the task.
        metric: The task's metric.
        held_out: Name of the split that evaluations during training are on.
        valid: The calibrated model on that split; `None` if it is the test split.
        best: The best evaluation during training, whose model is in `checkpoints/best.safetensors`; `None` if there was
            none.
        cost: GBitOPs, those of static precision at max_bits, and the ratio and saving.
        seconds: Time of training, of waiting for data in it, of evaluation, calibration, and in total.
        images_per_s: Mean training throughput.
        steps_by_bits: By forward bits: GBitOPs of a step with gradients at their max_bits, number of measured steps,
            their median seconds without waiting for data, and peak of memory in bytes (allocated on a GPU, physical
            memory of the process on a CPU).
        device: The device, with the number of threads.
        versions: Versions of the packages that the result depends on.
        weights_sha256: SHA-256 of `model.safetensors`.
        report_version: Format of this report.
    """

    name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    bits: Mapping[str, Any]
    steps: int
    epochs: float
    test: Evaluation
    best: Evaluation | None
    cost: Mapping[str, float]
    seconds: Mapping[str, float]
    images_per_s: float
    device: str
    versions: Mapping[str, str]
    weights_sha256: str
    task: str
    metric: Metric
    held_out: str = "test"
    steps_by_bits: Mapping[str, Mapping[str, float | int | None]] = field(default_factory=dict)
    valid: Evaluation | None = None
    report_version: int = REPORT_VERSION

    @property
    def figure(self) -> float:
        """Value of the task's metric for the calibrated model on the test split."""
        return self.test.metrics[self.metric.name]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> "RunReport":
        """Read `report.json`.

        Raises:
            CheckpointError: If it is missing, damaged, or written by a newer version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["report_version"]
            if version == REPORT_VERSION:
                known = {field.name: values[field.name] for field in fields(cls)}
                for name in ("test", "best", "valid"):
                    known[name] = Evaluation(**known[name]) if known[name] else None
                known["metric"] = Metric.from_dict(known["metric"])
                return cls(**{**known, "classes": tuple(known["classes"])})
        except FileNotFoundError as error:
            raise CheckpointError(
                f"Expected the report of a finished run at {path}, but found none",
                hint=f"finish the run first: cpt train --resume {readable.argument(path.parent)}",
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"Expected a whole report at {path}, but got: {error!r}") from error
        raise CheckpointError(
            f"Expected a report of format {REPORT_VERSION} at {path}, but got format {version}",
            hint="a newer cpt-deploy wrote it: install that version"
            if version > REPORT_VERSION
            else "an older cpt-deploy wrote it: train again",
        )


@dataclass(frozen=True)
class ProfileReport:
    """The time of a step by group of operators.

    Args:
        steps: Number of profiled steps.
        step_seconds: Mean wall-clock time of a step, which is longer than without the profiler.
        seconds: Mean seconds per step of each group, descending; GPU time on a GPU, otherwise CPU time.
        operators: The slowest operators of each group, with mean seconds per step.
        trace: The file for chrome://tracing or https://ui.perfetto.dev.
    """

    steps: int
    step_seconds: float
    seconds: dict[str, float]
    operators: dict[str, list[tuple[str, float]]]
    trace: Path


class TrainReporter(Protocol):
    """Receives the events of a run while it runs; a progress bar, for example."""

    def start(self, plan: TrainPlan) -> None:
        """Receive the plan before the first step."""

    def step(self, progress: StepProgress) -> None:
        """Receive the progress after each step."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Receive an evaluation; the last one has `calibrated` set."""

    def profiled(self, profile: ProfileReport) -> None:
        """Receive the profile after the profiled steps."""

    def finished(self, report: RunReport) -> None:
        """Receive the final report."""


class SilentReporter:
    """A reporter that ignores all events."""

    def start(self, plan: TrainPlan) -> None:
        """Do nothing."""

    def step(self, progress: StepProgress) -> None:
        """Do nothing."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Do nothing."""

    def profiled(self, profile: ProfileReport) -> None:
        """Do nothing."""

    def finished(self, report: RunReport) -> None:
        """Do nothing."""
