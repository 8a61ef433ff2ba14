"""The interface between the trainer and a task: data, loss and evaluation of a run.

`cpt_deploy.tasks`, a layer above this one, implements it; the registry of tasks in the recipe leads there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cpt_deploy.data import WHOLE, Share
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.metric import Metric
from cpt_deploy.quantization import QuantizedModel, class_divergence
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import task_name, tasks
from cpt_deploy.training.distributed.process_group import ProcessGroup
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.reports import Evaluation, Pretrained
from cpt_deploy.training.run_directory.run_directory import RunDirectory

Stop = Callable[[], bool]
"""Called before each batch of an evaluation or of calibration; if it returns true, the work stops."""


class StepOutcome(NamedTuple):
    """Result of a training step's forward pass.

    Args:
        loss: Mean loss of this process's part of the batch, 0-dim, to be differentiated.
        correct: Number of its samples that were predicted right, 0-dim; zero if the task does not count them.
        samples: Number of samples of this process's part.
        whole: Number of samples of the batch over all processes.
    """

    loss: Tensor
    correct: Tensor
    samples: int
    whole: int


class Final(NamedTuple):
    """The evaluation of the calibrated model.

    Args:
        test: On the test split, which the report states.
        held_out: On the split of the evaluations during training, for the last row of the log.
    """

    test: Evaluation
    held_out: Evaluation


class TrainingTask(ABC):
    """Data, loss and evaluation of a run. A task derives from it; methods with a body here may stay as they are.

    Attributes:
        name: Name of the task.
        unit: Name of the samples, in the plural.
        metric: The metric of evaluations; each has a value for it.
        train_metrics: Logged figures of training batches besides the loss: any of "accuracy", and "perplexity", which
            is exp(loss).
        test_metrics: Names of the metrics of an evaluation.
        held_out: Name of the split that evaluations during training are on.
        replayable: Whether batches are tuples of tensors and steps depend on nothing else, so that a CUDA graph of a
            step can be replayed.
        workers: Number of loading processes.
        pretrained: Result of loading initial weights in `build_model`; `None` if the weights are random.
        recipe: The settings; those that depend on the data are resolved.
    """

    name: str
    unit: str
    metric: Metric
    train_metrics: tuple[str, ...] = ()
    test_metrics: tuple[str, ...] = ()
    held_out: str = "test"
    replayable: bool = False
    pretrained: Pretrained | None = None
    recipe: Recipe

    @property
    @abstractmethod
    def samples(self) -> tuple[int, int]:
        """Number of samples to train and to test on."""

    @property
    @abstractmethod
    def step_samples(self) -> int:
        """Number of samples of a step over all processes."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""

    @abstractmethod
    def build_model(self) -> QuantizedModel:
        """Build the CPT model with its initial weights, on the CPU."""

    @abstractmethod
    def stream(self, steps: range, process_group: ProcessGroup, *, pin_memory: bool) -> Iterator[Any]:
        """Yield this process's part of the batch of each of these steps, counted from the beginning of the run."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Any, device: torch.device, *, autocast: bool) -> StepOutcome:
        """Compute the loss of a batch.

        Args:
            model: The model from `build_model`, or its replica.
            batch: From `stream`.
            device: Device of the model.
            autocast: Whether float operations compute in bfloat16.
        """

    @abstractmethod
    def evaluate(
        self, model: QuantizedModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Evaluation | None:
        """Evaluate on the held-out split at max_bits; `None` if a process was told to stop."""

    @abstractmethod
    def calibration_inputs(self, share: Share = WHOLE) -> Iterator[Any]:
        """Yield `train.calibration_batches` batches of training inputs, or a process's share of them."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return `data`, `classes` and `preprocessing` of the report."""

    def divergence(self, reference: Any, outputs: Any) -> Tensor:
        """Return how far outputs of a model are from others of the same batch, summed over its samples, 0-dim.

        By default the model returns logits, (N, ..., K), see `class_divergence`.
        """
        return class_divergence(reference, outputs)

    @property
    def workers(self) -> int:
        """Number of loading processes."""
        return 0

    @property
    def classes(self) -> int:
        """Number of classes, or of different tokens; 0 if there is no such number."""
        return 0

    @property
    def data_digest(self) -> str:
        """What tells the training data from others, for runs that are resumed; by default nothing does."""
        return ""

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.recipe.train.total_steps(self.steps_per_epoch)

    @property
    def rows(self) -> int:
        """Number of independent parts of a batch, which processes share among them."""
        return self.step_samples

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of unused files of the data set, by their type or the reason."""
        return {}

    @property
    def divided(self) -> bool:
        """Whether the data had no splits and were divided into training and test samples."""
        return False

    def doubts(self) -> Sequence[str]:
        """Return reasons why nothing can be learnt from these data, each with what to do about it."""
        return ()

    def check_processes(self, count: int) -> None:
        """Check that so many processes can train together.

        Raises:
            UsageError: If they cannot.
        """
        if self.rows < count:
            raise UsageError(
                f"Expected batches of at least one part for each process, but got {self.rows} for {count}",
                hint="raise train.batch_size, which is that of all processes together, or start fewer processes",
            )

    def begin(self, directory: RunDirectory) -> None:  # noqa: B027  it may stay empty
        """Write the task's own files into the directory of a new run; by default there are none."""

    def check(self, directory: RunDirectory) -> None:  # noqa: B027  likewise
        """Check that the data fit a run that is to be resumed; by default the recipe names them.

        Raises:
            CheckpointError: If they do not.
        """

    def state(self, model: QuantizedModel, process_group: ProcessGroup) -> Mapping[str, Tensor]:
        """Return what the next step needs of the one before, over all processes, each of which must call this."""
        return {}

    def restore(  # noqa: B027  likewise
        self, state: Mapping[str, Tensor], model: QuantizedModel, device: torch.device, process_group: ProcessGroup
    ) -> None:
        """Continue from a result of `state`, in whatever number of processes."""

    def is_better(self, evaluation: Evaluation, best: Evaluation) -> bool:
        """Return whether an evaluation is better than the best so far."""
        name = self.metric.name
        return self.metric.is_better(evaluation.metrics[name], best.metrics[name])

    def calibrate(
        self, synchronization: Synchronization, device: torch.device, stop: Stop, process_group: ProcessGroup
    ) -> None:
        """Re-estimate statistics and ranges at max_bits on training batches; every process must call it.

        Raises:
            DataError: If there are none, unless the work is to stop.
        """
        batches = self.calibration_inputs(process_group.share)
        if not synchronization.calibrate(_until(batches, stop)) and not stop():
            raise DataError("Expected at least one batch to calibrate on, but got none")

    def evaluate_calibrated(
        self, model: QuantizedModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Final | None:
        """Evaluate the calibrated model; `None` if a process was told to stop."""
        result = self.evaluate(model, device, step, stop, process_group)
        return None if result is None else Final(result, result)


def _until(batches: Iterator[Any], stop: Stop) -> Iterator[Any]:
    for batch in batches:
        if stop():
            return
        yield batch


def load_task(recipe: Recipe, device: torch.device, processes: int = 1) -> TrainingTask:
    """Open the data of a recipe and resolve the settings that depend on them.

    Args:
        recipe: The settings.
        device: Device of the model.
        processes: Number of processes of the run that share this machine's cores and memory.

    Raises:
        CptError: If task or data are unknown, the data are missing or damaged, or settings do not fit them.
    """
    name = task_name(recipe.data.task, recipe.data.name)
    resolved = recipe.model_copy(update={"data": recipe.data.model_copy(update={"task": name})})
    task: TrainingTask = tasks.get(name).load_training(resolved, device, processes)
    precision = task.recipe.precision.for_run(task.total_steps, task.total_steps / task.steps_per_epoch)
    task.recipe = task.recipe.model_copy(update={"precision": precision})
    return task
