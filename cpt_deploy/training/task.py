"""What the trainer asks of a task: classifying images and predicting text differ in this and in nothing else.

`cpt_deploy.tasks` implements it, which lies above; the recipe's registry of tasks leads there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cpt_deploy.quantization import ScheduledModel
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import task_name, tasks
from cpt_deploy.training.distributed.process_group import ProcessGroup
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.fine_tuning import Pretrained
from cpt_deploy.training.reporting.reports import Evaluation
from cpt_deploy.training.run_directory.run_directory import RunDirectory

Stop = Callable[[], bool]
"""Asked before each batch of an evaluation or of calibration whether to give up."""


class StepOutcome(NamedTuple):
    """What a step's forward gives.

    Args:
        loss: Mean loss of this process's part of the batch, 0-dim, to be differentiated.
        correct: How many of its samples were predicted right, 0-dim.
        samples: How many samples this process's part has.
        whole: How many the batch has over all processes.
    """

    loss: Tensor
    correct: Tensor
    samples: int
    whole: int


class Final(NamedTuple):
    """The evaluation of the calibrated model.

    Args:
        test: On what the report's result is.
        held_out: What the evaluations on the way were on, for the last row of the log: the test images, or the
            validation text.
    """

    test: Evaluation
    held_out: Evaluation


class TrainingTask(Protocol):
    """What a run learns, from what, and what is measured."""

    #: As recipe and report have it.
    name: str
    #: What a sample is, in the plural.
    unit: str
    #: What `build_model` took of a file of weights; `None` if the model begins fresh.
    pretrained: Pretrained | None

    @property
    def recipe(self) -> Recipe:
        """The settings, with everything resolved that the data decides."""

    @property
    def workers(self) -> int:
        """Loading processes."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    @property
    def total_steps(self) -> int:
        """Length of the run."""

    @property
    def step_samples(self) -> int:
        """Samples of a whole step over all processes."""

    @property
    def rows(self) -> int:
        """How many independent parts a batch has, which processes share among them."""

    @property
    def classes(self) -> int:
        """Number of classes, or of different tokens."""

    @property
    def samples(self) -> tuple[int, int]:
        """Number of samples to train and to test on."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many files beside the samples are not used, by their type or the reason."""

    def check_processes(self, count: int) -> None:
        """Make sure that so many processes can train together.

        Raises:
            UsageError: If they cannot.
        """

    def build_model(self) -> ScheduledModel:
        """Build the CPT model, with the weights that the run begins with, on the CPU."""

    def begin(self, directory: RunDirectory) -> None:
        """Write what belongs into the directory of a new run."""

    def check(self, directory: RunDirectory) -> None:
        """Make sure that the data fit a run that is to be resumed.

        Raises:
            CheckpointError: If they do not.
        """

    def stream(self, steps: range, process_group: ProcessGroup, *, pin_memory: bool) -> Iterator[Any]:
        """Yield this process's part of the batch of each of these steps, counted from the beginning of the run."""

    def step(self, model: nn.Module, batch: Any, device: torch.device, *, autocast: bool) -> StepOutcome:
        """Compute the loss of a batch.

        Args:
            model: The `training_module` of what `build_model` made, or what makes a replica of it.
            batch: From `stream`.
            device: Where the model is.
            autocast: Whether float operations compute in bfloat16.
        """

    def state(self, model: ScheduledModel, process_group: ProcessGroup) -> Mapping[str, Tensor]:
        """Return what the next step needs of the one before, over all processes, each of which must call this."""

    def restore(
        self, state: Mapping[str, Tensor], model: ScheduledModel, device: torch.device, process_group: ProcessGroup
    ) -> None:
        """Go on from what `state` returned, in whatever number of processes."""

    def evaluate(
        self, model: ScheduledModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Evaluation | None:
        """Evaluate on the way, at max_bits; `None` if a process was told to stop."""

    def is_better(self, evaluation: Evaluation, best: Evaluation) -> bool:
        """Return whether an evaluation is better than the best so far."""

    def calibrate(
        self, synchronization: Synchronization, device: torch.device, stop: Stop, process_group: ProcessGroup
    ) -> None:
        """Re-estimate statistics and ranges at max_bits on training batches; every process must call it."""

    def evaluate_calibrated(
        self, model: ScheduledModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Final | None:
        """Evaluate the calibrated model; `None` if a process was told to stop."""

    def describe(self) -> dict[str, Any]:
        """Return `data`, `classes` and `preprocessing` of the report."""


def load_task(recipe: Recipe, device: torch.device, processes: int = 1) -> TrainingTask:
    """Open the data of a recipe and resolve what it leaves to them.

    Args:
        recipe: The settings.
        device: Where the model will be.
        processes: How many processes of the run share this machine's cores and memory.

    Raises:
        CptError: If task or data are unknown, the data are missing or damaged, or settings do not fit them.
    """
    name = task_name(recipe.data.task, recipe.data.name)
    resolved = recipe.model_copy(update={"data": recipe.data.model_copy(update={"task": name})})
    task: TrainingTask = tasks.get(name).load_training(resolved, device, processes)
    return task
