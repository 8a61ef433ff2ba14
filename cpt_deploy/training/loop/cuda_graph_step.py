"""The CUDA-graph step: forward and backward of all layers, recorded once and replayed.

Bits, seeds, ranges and statistics are tensors on the device and a step reads nothing back, so one recording serves the
whole run. Steps of another batch size (the last batch of an epoch) are computed eagerly. Where another set of tensors
is quantized, as when delayed quantization begins, a step is recorded anew.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.training.loop.run import Run
from cpt_deploy.training.task import StepOutcome, TrainingTask

Batch = tuple[Tensor, ...]
Replay = Callable[[], StepOutcome]

WARMUP_STEPS = 3
"""Steps computed eagerly before one is recorded: libraries choose their kernels and allocate in them."""


def record_cuda_graph(step: Callable[[], StepOutcome]) -> Replay:
    """Record forward and backward of a step, without computing it, and return a function that replays it.

    The loss and the count that a replay returns are copies; gradients stay in the recording's own tensors.
    """
    graph = torch.cuda.CUDAGraph()
    # The restrictions of recording apply to this thread only: other threads pin the memory of the next batches.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outcome = step()
        outcome = outcome._replace(loss=outcome.loss.detach())  # without autograd's graph, which would stay alive

    def replay() -> StepOutcome:
        graph.replay()
        return outcome._replace(loss=outcome.loss.clone(), correct=outcome.correct.clone())

    return replay


class CudaGraphStep:
    """Computes steps by replaying a recording, made after `WARMUP_STEPS` eager steps.

    Args:
        step: Computes loss and gradients of a batch on the device; gradients that are `None` before it are new tensors.
        parameters: The parameters that have gradients.
        device: Device of the model, to which batches are copied.
        record: Records a step.
    """

    def __init__(
        self,
        step: Callable[[Batch], StepOutcome],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        record: Callable[[Callable[[], StepOutcome]], Replay] = record_cuda_graph,
    ) -> None:
        self.step, self.parameters, self.device, self.record = step, parameters, device, record
        self.warmup = WARMUP_STEPS
        self.branches: Hashable = None
        self.key: Hashable = None
        self.inputs: Batch = ()
        self.replay: Replay | None = None
        self.gradients: list[Tensor | None] = []

    def __call__(self, batch: Batch, branches: Hashable) -> StepOutcome | None:
        """Compute loss and gradients of a batch, or return `None` if it has to be computed eagerly.

        Args:
            batch: Tensors of a batch; images become channels-last.
            branches: State, besides the shapes, that determines the operations of a step.
        """
        key = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if branches != self.branches:
            self.branches, self.warmup = branches, WARMUP_STEPS
            self.replay, self.inputs, self.gradients = None, (), []  # their memory is free for the next recording
        if self.replay is None:
            if self.warmup:
                self.warmup -= 1
                self.key = key
                return None
            if key != self.key:
                return None
            self._record(batch)
        elif key != self.key:
            return None
        for place, tensor in zip(self.inputs, batch, strict=True):
            place.copy_(tensor, non_blocking=True)
        assert self.replay is not None
        outcome = self.replay()
        self._hand_over_gradients()
        return outcome

    def _record(self, batch: Batch) -> None:
        self.inputs = tuple(_room_for(tensor, self.device) for tensor in batch)
        for parameter in self.parameters:
            parameter.grad = None
        self.replay = self.record(lambda: self.step(self.inputs))
        self.gradients = [parameter.grad for parameter in self.parameters]

    def _hand_over_gradients(self) -> None:
        """Restore the recording's gradient tensors, which an eager step in between may have replaced."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


def cuda_graph_step(run: Run, *, autocast: bool) -> CudaGraphStep | None:
    """Return the CUDA-graph step of a run if its recipe asks for it, otherwise `None`.

    Args:
        run: The run.
        autocast: Whether float operations compute in bfloat16.
    """
    objects = run.objects
    if not run.task.recipe.train.cuda_graph:
        return None
    parameters = [parameter for parameter in objects.model.parameters() if parameter.requires_grad]
    return CudaGraphStep(gradients_of(run, autocast=autocast), parameters, objects.device)


def check_cuda_graph(task: TrainingTask, device: torch.device, processes: int) -> None:
    """Make sure that a CUDA graph can be recorded of the steps of a task, if its recipe asks for it.

    Raises:
        UsageError: If the run is not on a GPU, is one of several processes, or its steps depend on each other.
    """
    if not task.recipe.train.cuda_graph or (device.type == "cuda" and processes == 1 and task.replayable):
        return
    what = f"{task.name} on {device.type} in {processes} process{'es' * (processes > 1)}"
    raise UsageError(
        f"Expected train.cuda_graph for batches of tensors on cuda in one process, but got {what}",
        hint="leave train.cuda_graph at false",
    )


def gradients_of(run: Run, *, autocast: bool) -> Callable[[Batch], StepOutcome]:
    """Return a function that computes loss and gradients of a batch in a run."""

    def step(batch: Batch) -> StepOutcome:
        outcome = run.task.step(run.synchronization.replica, batch, run.objects.device, autocast=autocast)
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        return outcome

    return step


def _room_for(tensor: Tensor, device: torch.device) -> Tensor:
    order = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=order)
