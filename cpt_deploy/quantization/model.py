"""The CPT model: a traced network whose bits are one shared state."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from cpt_deploy.errors import CptWarning, DataError
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, module_of
from cpt_deploy.quantization.kernels import active
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.state.scheduled_model import CyclingModel, LayerInfo
from cpt_deploy.quantization.training_step.execution_path import ExecutionPath
from cpt_deploy.quantization.training_step.fused_operations import Engine
from cpt_deploy.quantization.training_step.fused_step import TrainingProgram
from cpt_deploy.quantization.training_step.products import Compute, choose_compute

#: Codes of more bits fit neither a byte nor the significand of bfloat16.
CODE_BITS = 8
#: What preparing and fusion note of nodes in their `meta`.
_NOTED = ("shape", "dtype", IS_FLOAT)


class QuantizedModel(CyclingModel):
    """A model made by `prepare`; call it as the float model. Input (N, *input_shape), output (N, classes).

    Attributes:
        network: The traced graph with its layers and edge quantizers.
        precision: The current bits.
        config: What it was prepared with.
        input_shape: Shape of one input without the batch dimension.
        compute: How training steps compute, see `products.Compute`; evaluation is always module by module.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        precision: PrecisionState,
        config: QuantizationConfig,
        input_shape: tuple[int, ...],
        layers: list[LayerInfo],
    ) -> None:
        super().__init__(precision, config, layers)
        self.network = network
        self.input_shape = input_shape
        self.compute: Compute = "auto"
        self._program: TrainingProgram | None = None
        self._obstacles: set[str] = set()
        self._normalises_samples: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits at the present bits."""
        if self.training and not len(x):
            raise DataError("Expected batches of at least 1 sample in training, but got none")
        if self.training and not torch.compiler.is_compiling() and len(x) == 1 and self.normalises_samples():
            raise DataError(
                "Expected batches of at least 2 samples in training, since a BatchNorm normalises over them, but got 1",
                hint="leave an incomplete last batch out: DataLoader(..., drop_last=True)",
            )
        logits: Tensor
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            path = self.execution_path(x)
            if path.fused:
                logits = self._fused_step()(x, self._engine(path, x.device.type))
                self.watch_step(logits)
                return logits
            if path.hindered:
                self._say_slow(path.reason)
        logits = self.network(x)
        self.watch_step(logits)
        return logits

    def execution_path(self, x: Tensor | None = None) -> ExecutionPath:
        """Return which way a step on a batch would run now, and why.

        Args:
            x: The batch, of which type and device count; without one it is float32 on the model's device.

        Raises:
            UsageError: If `compute` asks for what the processor does not have.
        """
        own = next(self.parameters())
        device, dtype = (own.device.type, torch.float32) if x is None else (x.device.type, x.dtype)
        excluded = self._excluded(device, {own.dtype, torch.float32 if dtype == torch.int64 else dtype})
        if excluded is not None:
            return ExecutionPath("modules", excluded)
        chosen = active(device)
        compute = choose_compute(self.compute, native=chosen.native, device=device)
        if compute == "modules":
            asked = self.compute == "modules"
            return ExecutionPath("modules", "compute is 'modules'" if asked else f"no kernels here: {chosen.reason}")
        obstacle = self._fused_step().obstacle()
        if obstacle is not None:
            return ExecutionPath("modules", obstacle, hindered=True)
        return ExecutionPath(compute, f"compute is {self.compute!r}, with the kernels {chosen.kernels.name!r}")

    def _excluded(self, device: str, dtypes: set[torch.dtype]) -> str | None:
        """Return why no step on such a device and of such types runs on codes, whatever is set; None if it may."""
        bits = self.precision.most_bits
        reasons = {
            "the model is in evaluation mode": not self.training,
            "gradients are off": not torch.is_grad_enabled(),
            f"there are no kernels for {device!r}": device not in ("cpu", "cuda"),
            "weights and inputs are not all float32": dtypes != {torch.float32},
            "autocast is on": device == "cpu" and torch.is_autocast_enabled("cpu"),
            f"codes of {bits} bits do not fit into a byte": bits > CODE_BITS,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _fused_step(self) -> TrainingProgram:
        self._program = self._program or TrainingProgram(self.network, self.input_shape)
        return self._program

    @staticmethod
    def _engine(path: ExecutionPath, device: str) -> Engine:
        dtype = torch.bfloat16 if path.compute == "bf16" else torch.float32
        return Engine(active(device).kernels, dtype, replayable=device == "cuda")

    def _say_slow(self, obstacle: str) -> None:
        if obstacle not in self._obstacles:
            self._obstacles.add(obstacle)
            warnings.warn(
                f"training steps run module by module, not on codes, which is slower: {obstacle}",
                CptWarning,
                stacklevel=3,
            )

    def normalises_samples(self) -> bool:
        """Return whether a BatchNorm finds one value of each channel in a sample, so that it needs more than one."""
        if self._normalises_samples is None:
            self._normalises_samples = any(
                isinstance(module_of(node, self.network), _BatchNorm) and math.prod(node.meta["shape"][2:]) == 1
                for node in self.network.graph.nodes
            )
        return self._normalises_samples

    def modules_replaced(self) -> None:
        """Take the network's modules as they are now; to be called by whoever puts others in their place."""
        self._program = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the program out of copies, which make their own, and add what a pickled graph would lose."""
        notes = [{key: node.meta[key] for key in _NOTED if key in node.meta} for node in _called(self.network)]
        return {**self.__dict__, "_program": None, "_notes": notes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give the nodes of the graph back what was noted of them."""
        notes = state.pop("_notes")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for node, noted in zip(_called(self.network), notes, strict=True):
            node.meta.update(noted)

    def edges(self) -> Iterator[tuple[str, EdgeQuantizer]]:
        """Yield name and quantizer of every edge, in the order of the graph."""
        for path, module in self.network.named_modules():
            if isinstance(module, EdgeQuantizer):
                yield path.rpartition(".")[2], module


def _called(network: fx.GraphModule) -> list[fx.Node]:
    """Return what a graph is given and calls: an unpickled one has it in the same order, under other names."""
    return [node for node in network.graph.nodes if node.op not in ("get_attr", "output")]
