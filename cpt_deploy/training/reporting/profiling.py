"""Profiling of training steps: torch.profiler over some steps, times by group of operators, and a trace file."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.training.reports import ProfileReport
from cpt_deploy.training.run_directory.files import disk_errors

SKIPPED_STEPS = 2
"""Steps before the profiled ones, in which memory is allocated and the profiler warms up."""
ACTIVATIONS = "quantization of activations"

# The first entry contained in an operator's name, or in that of an enclosing operator, decides its group.
FUSED = "BatchNorm, ReLU and quantization in one"
_GROUPS = (
    ("Optimizer.", "optimizer"),
    (ACTIVATIONS, ACTIVATIONS),
    ("FakeQuantizeAffine", ACTIVATIONS),
    ("QuantizeWeight", "quantization of weights"),
    ("QuantizeGradient", "quantization of gradients"),
    ("all_reduce", "communication"),
    ("allreduce", "communication"),
    ("all_gather", "communication"),
    ("allgather", "communication"),
    # The compiled kernels are not events: their time is that of their autograd functions outside of the products.
    ("_LayerFunction", FUSED),
    ("_AddFunction", FUSED),
    ("_OutputFunction", FUSED),
    ("_Encode", ACTIVATIONS),
    ("_Decode", ACTIVATIONS),
    ("batch_norm", "BatchNorm"),
    ("BatchNorm", "BatchNorm"),
    ("_Normalise", "BatchNorm"),
    ("convolution", "convolution and linear layers"),
    ("Convolution", "convolution and linear layers"),
    ("aten::conv", "convolution and linear layers"),
    ("addmm", "convolution and linear layers"),
    ("Addmm", "convolution and linear layers"),
    ("aten::linear", "convolution and linear layers"),
    ("aten::mm", "convolution and linear layers"),
    ("_int_mm", "convolution and linear layers"),
)
TOP_OPERATORS = 3
DATA, OTHER, BETWEEN = "data", "other operators", "between operators (Python)"


class StepProfiler:
    """Profiles some steps of a run; use it as a context and call `step` after each step.

    Args:
        model: The model, whose activation quantizers are labelled meanwhile.
        steps: Number of steps.
        trace: Path of the trace file.
        on_gpu: Whether to count GPU time instead of CPU time.
    """

    def __init__(self, model: QuantizedModel, steps: int, trace: Path, *, on_gpu: bool) -> None:
        self.report: ProfileReport | None = None
        self._trace, self._on_gpu = trace, on_gpu
        self._taken = 0
        self._model = model
        self._stack = ExitStack()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        plan = schedule(wait=0, warmup=SKIPPED_STEPS, active=steps, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._finished)

    def __enter__(self) -> "StepProfiler":
        for module in self._model.modules():
            if isinstance(module, ActivationQuantizer | Requantize):
                _label(module, ACTIVATIONS, self._stack)
        self._stack.enter_context(self._profile)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def is_on(self) -> bool:
        """Whether profiling is not finished yet, so that steps take longer."""
        return self.report is None

    def step(self) -> None:
        """Record the end of a step; a no-op after the last profiled one."""
        if self.report is None:
            self._taken += 1
            self._profile.step()

    def _finished(self, finished: Any) -> None:
        profiled = self._taken - SKIPPED_STEPS  # fewer than asked for if the run ended before
        if profiled < 1:
            return
        with disk_errors("the trace", self._trace):
            finished.export_chrome_trace(str(self._trace))
        self.report = _summarised(finished.events(), profiled, self._trace, on_gpu=self._on_gpu)


def _label(module: nn.Module, name: str, stack: ExitStack) -> None:
    """Let the profiler see a module's forward under a name until the stack is closed."""
    forward = module.forward

    def labelled(*inputs: Any) -> Any:
        with record_function(name):
            return forward(*inputs)

    # Not by hooks: a network with hooks on its modules does not use the fused training step.
    module.forward = labelled
    stack.callback(delattr, module, "forward")


def _summarised(events: Sequence[Any], steps: int, trace: Path, *, on_gpu: bool) -> ProfileReport:
    seconds: dict[str, float] = defaultdict(float)
    operators: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    wall = 0.0
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a GPU's kernels count where they were launched
        if event.name.startswith("ProfilerStep"):
            wall += event.cpu_time_total / 1e6
            continue
        own = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        group = _group(event)
        seconds[group] += own
        operators[group][event.name] += own
    seconds[BETWEEN] = max(wall - sum(seconds.values()), 0.0)
    most = {
        group: [(name, own / steps) for name, own in _descending(owned)[:TOP_OPERATORS]]
        for group, owned in operators.items()
    }
    means = {group: own / steps for group, own in _descending(seconds) if own > 0}
    return ProfileReport(steps, wall / steps, means, most, trace)


def _descending(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda entry: entry[1], reverse=True)


def _group(event: Any) -> str:
    """Return the group of an operator: its own, or else that of the nearest enclosing operator that has one."""
    while event is not None:
        if event.name == DATA:
            return DATA
        for part, group in _GROUPS:
            if part in event.name:
                return group
        event = event.cpu_parent
    return OTHER
