"""What a run tells: its plan, the progress of each step, evaluations, and the final report; and to whom."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cpt_deploy.errors import CheckpointError
from cpt_deploy.recipe import Recipe

if TYPE_CHECKING:
    from cpt_deploy.quantization.graph.conversion import Conversion
    from cpt_deploy.training.fine_tuning import Pretrained
    from cpt_deploy.training.reporting.profiling import ProfileReport

REPORT_VERSION = 1


@dataclass(frozen=True)
class TrainPlan:
    """What a run is going to do.

    Args:
        run_dir: Its directory.
        recipe: All settings as resolved.
        device: "cpu" or "cuda:0".
        processes: How many processes train together.
        workers: Loading processes of each of them.
        parameters: Number of trainable parameters.
        macs: Multiply-accumulates per sample in the quantized layers.
        layers: Number of quantized layers by role: "cycle", "hold", and the names of groups.
        train_images: Number of training samples: images, or tokens.
        test_images: Number of test samples.
        classes: Number of classes, or of different tokens.
        steps_per_epoch: Batches of an epoch.
        total_steps: Length of the run.
        first_step: 0, or where a resumed run goes on.
        unit: What a sample is, in the plural: "images" or "tokens".
        pretrained: What the model begins with; `None` if it begins fresh.
        left_out: How many files beside the samples are not used, by their type or the reason.
        conversion: Which way the network was converted, and why.
        relative_cost: BitOPs of the cycling layers relative to static precision at the upper bound; `None` if the bits
            will follow the loss.
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
    pretrained: "Pretrained | None" = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    conversion: "Conversion | None" = None


@dataclass(frozen=True)
class StepProgress:
    """One finished step.

    Args:
        step: Number of finished steps.
        total_steps: Length of the run.
        epoch: The epoch of this step, from 0.
        bits: Forward bits of this step.
        grad_bits: Gradient bits of this step.
        lr: Learning rate of this step.
        loss: Mean training loss of the last log interval; `None` before there is one.
        accuracy: Top-1 accuracy on training batches in the last log interval, 0 to 1.
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
    """What the model does at the upper bound on samples that it does not train on: images, or the tokens of a text.

    Args:
        step: Number of finished steps.
        loss: Mean cross-entropy.
        top1: Share of samples whose class, or next token, is the most likely one.
        top5: Share of samples whose class is among the five most likely; `None` with up to five classes, and for text.
        images: Number of samples.
        seconds: Time it took.
        settled: Whether it is the final one, after settling.
        best: Whether it is the best of the run so far (the final one is not compared).
        perplexity: exp(loss) of a text; `None` for images.
    """

    step: int
    loss: float
    top1: float
    top5: float | None
    images: int
    seconds: float
    settled: bool = False
    best: bool = False
    perplexity: float | None = None


@dataclass(frozen=True)
class RunReport:
    """The result of a run, as `report.json` holds it.

    Args:
        name: The recipe's name.
        model: Name, parameters, MACs, quantized layers by role, which way it was converted and why, and the weights it
            began with, if any.
        data: Name, numbers of images, and digests of the data set where it is in memory.
        classes: Names of the classes; none for text.
        preprocessing: How an image becomes an input, see `Preprocessing.from_dict`; empty for text.
        bits: Lower and upper bound, the schedules' names, and the share of steps at each number of bits.
        steps: Number of steps.
        epochs: Number of epochs.
        test: The final evaluation of the settled model.
        task: "classification" or "language-model".
        valid: The settled model on the validation text; `None` for images.
        best: The best evaluation on the way, which is in `checkpoints/best.safetensors`; `None` if there was none.
        cost: GBitOPs, those of static precision at the upper bound, and the ratio and saving.
        seconds: Time of training, of waiting for data in it, of evaluation, settling, and in total.
        images_per_s: Mean training throughput.
        steps_by_bits: By forward bits: GBitOPs of a step with gradients at their upper bound, number of measured steps,
            their median seconds without waiting for data, and peak of memory in bytes (allocated on a GPU, physical
            memory of the process on a CPU).
        device: What it ran on, with the number of threads.
        versions: Versions of what the result depends on.
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
    steps_by_bits: Mapping[str, Mapping[str, float | int | None]] = field(default_factory=dict)
    task: str = "classification"
    valid: Evaluation | None = None
    report_version: int = REPORT_VERSION

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
            if version <= REPORT_VERSION:
                # what reports of earlier versions do not have
                values = {"steps_by_bits": {}, "task": "classification", "valid": None, **values}
                known = {field.name: values[field.name] for field in fields(cls)}
                for name in ("test", "best", "valid"):
                    known[name] = Evaluation(**known[name]) if known[name] else None
                return cls(**{**known, "classes": tuple(known["classes"])})
        except FileNotFoundError as error:
            raise CheckpointError(
                f"Expected the report of a finished run at {path}, but found none",
                hint=f"finish the run first: cpt train --resume {path.parent}",
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"Expected a whole report at {path}, but got: {error!r}") from error
        raise CheckpointError(
            f"Expected a report of format {REPORT_VERSION} at {path}, but got format {version}",
            hint="it was written by a newer cpt-deploy: upgrade",
        )


class TrainReporter(Protocol):
    """Who is told about a run while it runs; a progress bar, for example."""

    def start(self, plan: TrainPlan) -> None:
        """Take note of what is going to happen."""

    def step(self, progress: StepProgress) -> None:
        """Take note of a finished step."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Take note of an evaluation; the last one has `settled` set."""

    def profiled(self, profile: "ProfileReport") -> None:
        """Take note of where the time of the profiled steps went."""

    def finished(self, report: RunReport) -> None:
        """Take note of the result."""


class SilentReporter:
    """A reporter that says nothing."""

    def start(self, plan: TrainPlan) -> None:
        """Say nothing."""

    def step(self, progress: StepProgress) -> None:
        """Say nothing."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Say nothing."""

    def profiled(self, profile: "ProfileReport") -> None:
        """Say nothing."""

    def finished(self, report: RunReport) -> None:
        """Say nothing."""
