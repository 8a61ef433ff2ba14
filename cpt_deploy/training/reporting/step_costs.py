"""Measured costs of steps at each bit-width: time without waiting for data, and memory."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

KEPT_TIMES = 512
"""Max number of times kept for each bit-width; beyond it, only every second, fourth, … step is kept."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class BitsCost:
    """The steps at one bit-width.

    Attributes:
        steps: Number of steps.
        stride: Interval between steps whose times are kept.
        seconds: The kept times.
        memory: Peak bytes during a step: allocated on a GPU; physical memory of the process on a CPU.
    """

    steps: int = 0
    stride: int = 1
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None

    def add(self, seconds: float) -> None:
        """Add a step; its time is kept only if the stride selects it."""
        if self.steps % self.stride == 0:
            self.seconds.append(seconds)
        self.steps += 1
        if len(self.seconds) == KEPT_TIMES:
            self.seconds = self.seconds[::2]
            self.stride *= 2

    def summary(self) -> dict[str, float | int | None]:
        """Return number of steps, median time in seconds, and memory in bytes."""
        return {"steps": self.steps, "median_seconds": statistics.median(self.seconds), "memory_bytes": self.memory}


class StepCosts:
    """Measures steps; call `begin` and `end` around each.

    The first step of a process is left out, since it includes set-up. On a GPU times are measured by device events, and
    only `read` waits for them.

    Args:
        device: Device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.by_bits: dict[int, BitsCost] = {}
        self._warm = False
        self._began: Any = None
        self._probes = False
        self._waiting: list[tuple[int, Any, Any]] = []

    def begin(self, bits: int) -> None:
        """Record the start of a step at the given bits, after its batch was loaded."""
        cost = self.by_bits.get(bits)
        steps = cost.steps if cost is not None else 0
        # Querying the system takes as long as a small operator, so only at steps 1, 2, 4, 8, … of a bit-width.
        self._probes = self.device.type == "cuda" or steps & (steps - 1) == 0
        if self._probes:
            reset_peak_memory(self.device)
        self._began = self._now()

    def end(self, bits: int) -> None:
        """Record the end of the step."""
        ended = self._now()
        if not self._warm:
            self._warm = True
            return
        self._waiting.append((bits, self._began, ended))
        if self._probes:
            memory = peak_memory(self.device)
            cost = self.by_bits.setdefault(bits, BitsCost())
            cost.memory = memory if cost.memory is None or memory is None else max(cost.memory, memory)
        if self.device.type != "cuda":
            self.read()

    def read(self) -> None:
        """Read the pending times; on a GPU this waits for the last step."""
        for bits, began, ended in self._waiting:
            if self.device.type == "cuda":
                ended.synchronize()
                seconds = began.elapsed_time(ended) / 1000.0
            else:
                seconds = ended - began
            self.by_bits.setdefault(bits, BitsCost()).add(seconds)
        self._waiting.clear()

    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """Return the cost of each bit-width that has a measured step, ascending by bits."""
        self.read()
        return {str(bits): self.by_bits[bits].summary() for bits in sorted(self.by_bits) if self.by_bits[bits].steps}

    def columns(self, bits: int) -> dict[str, float | None]:
        """Return median time and memory of the steps at the given bits, as columns of `metrics.csv`."""
        self.read()
        cost = self.by_bits.get(bits)
        if cost is None or not cost.seconds:
            return {"step_ms": None, "memory_mb": None}
        memory = None if cost.memory is None else round(cost.memory / 1e6, 1)
        return {"step_ms": round(1e3 * statistics.median(cost.seconds), 3), "memory_mb": memory}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        self.read()
        return {str(bits): vars(cost) for bits, cost in self.by_bits.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.by_bits = {int(bits): BitsCost(**cost) for bits, cost in state.items()}

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of memory, if the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")  # Linux: the peak of the resident set is set to its present size
    except OSError:
        return


def peak_memory(device: torch.device) -> int | None:
    """Return the peak of memory since its last reset, in bytes; `None` if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
