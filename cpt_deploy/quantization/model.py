"""The CPT model: a traced network whose bits are one shared state."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from cpt_deploy.errors import CptWarning, DataError
from cpt_deploy.quantization.graph.capture.tracing import is_tensor
from cpt_deploy.quantization.kernels import active
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.state.scheduled_model import CyclingModel, LayerInfo
from cpt_deploy.quantization.training_step.fused_operations import Engine
from cpt_deploy.quantization.training_step.fused_step import TrainingProgram
from cpt_deploy.quantization.training_step.products import Compute, choose_compute

#: Codes of more bits fit neither a byte nor the significand of bfloat16.
CODE_BITS = 8


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
        engine = self._engine(x)
        if engine is not None:
            self._program = self._program or TrainingProgram(self.network, self.input_shape)
            obstacle = self._program.obstacle()
            if obstacle is None:
                logits = self._program(x, engine)
                self.watch_step(logits)
                return logits
            self._say_slow(obstacle)
        logits = self.network(x)
        self.watch_step(logits)
        return logits

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
                isinstance(self.network.get_submodule(str(node.target)), _BatchNorm)
                and math.prod(node.meta["shape"][2:]) == 1
                for node in self.network.graph.nodes
                if node.op == "call_module" and is_tensor(node)
            )
        return self._normalises_samples

    def _engine(self, x: Tensor) -> Engine | None:
        """Return what computes a training step on codes, or None where modules compute one by one."""
        device = x.device.type
        takes = x.dtype in (torch.float32, torch.int64) and next(self.parameters()).dtype == torch.float32
        if torch.compiler.is_compiling() or device not in ("cpu", "cuda") or not takes:
            return None
        if device == "cpu" and torch.is_autocast_enabled("cpu"):
            return None
        if not (self.training and torch.is_grad_enabled() and self.precision.most_bits <= CODE_BITS):
            return None
        chosen = active(device)
        compute = choose_compute(self.compute, native=chosen.native, device=device)
        if compute == "modules":
            return None
        dtype = torch.bfloat16 if compute == "bf16" else torch.float32
        return Engine(chosen.kernels, dtype, replayable=device == "cuda")

    def modules_replaced(self) -> None:
        """Take the network's modules as they are now; to be called by whoever puts others in their place."""
        self._program = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the program out of copies: it is made anew from the copy's modules."""
        return {**self.__dict__, "_program": None}

    def edges(self) -> Iterator[tuple[str, EdgeQuantizer]]:
        """Yield name and quantizer of every edge, in the order of the graph."""
        for path, module in self.network.named_modules():
            if isinstance(module, EdgeQuantizer):
                yield path.rpartition(".")[2], module
