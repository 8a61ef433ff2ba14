"""The CPT model: a traced network whose bits are one shared state."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from cpt_deploy.errors import CptWarning, DataError, UsageError
from cpt_deploy.quantization.graph.capture.tracing import is_tensor
from cpt_deploy.quantization.graph.results import Structure
from cpt_deploy.quantization.kernels import active
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.state.scheduled_model import CyclingModel, LayerInfo
from cpt_deploy.quantization.training_step.fused_operations import Engine
from cpt_deploy.quantization.training_step.fused_step import TrainingProgram
from cpt_deploy.quantization.training_step.products import Compute, choose_compute
from cpt_deploy.signature import Signature

#: Codes of more bits fit neither a byte nor the significand of bfloat16.
CODE_BITS = 8


@dataclass(frozen=True, slots=True)
class Calling:
    """How a model is called, and what it returns.

    Attributes:
        parameters: Names of its arguments, in the order of the signature's inputs.
        structure: How the tensors that it returns are put together.
    """

    parameters: tuple[str, ...]
    structure: Structure

    def inputs(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the input tensors of a call.

        Raises:
            UsageError: If these are not the arguments that the model was prepared with.
        """
        if not named and len(args) == len(self.parameters):
            return args
        given = dict(zip(self.parameters, args, strict=False))
        if len(args) + len(named) != len(self.parameters) or given.keys() | named.keys() != {*self.parameters}:
            raise UsageError(
                f"Expected the inputs {', '.join(self.parameters)}, with which the model was prepared, but got "
                f"{len(args)} by position and {', '.join(named) or 'none'} by name"
            )
        given |= named
        return tuple(given[name] for name in self.parameters)


class QuantizedModel(CyclingModel):
    """A model made by `prepare`; call it as the float model.

    Attributes:
        network: The traced graph with its layers and edge quantizers; it takes the tensors of the signature, and
            returns one tensor, or a tuple of several.
        precision: The current bits.
        config: What it was prepared with.
        signature: Names, types and shapes of its inputs and outputs.
        calling: How it is called, and what it returns.
        compute: How training steps compute, see `products.Compute`; evaluation is always module by module.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        precision: PrecisionState,
        config: QuantizationConfig,
        signature: Signature,
        calling: Calling,
        layers: list[LayerInfo],
    ) -> None:
        super().__init__(precision, config, layers)
        self.network = network
        self.signature = signature
        self.calling = calling
        self.compute: Compute = "auto"
        self._program: TrainingProgram | None = None
        self._obstacles: set[str] = set()
        self._normalises_samples: bool | None = None

    def forward(self, *args: Any, **named: Any) -> Any:
        """Return what the float model returns, at the present bits."""
        inputs = self.calling.inputs(args, named)
        result = self._result(inputs)
        self.watch_step(result if isinstance(result, Tensor) else result[0])
        structure = self.calling.structure
        return (
            result if structure.is_one_tensor else structure.built([result] if isinstance(result, Tensor) else result)
        )

    def _result(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return one tensor, or several."""
        x = inputs[0]
        if self.training and not len(x):
            raise DataError("Expected batches of at least 1 sample in training, but got none")
        if self.training and not torch.compiler.is_compiling() and len(x) == 1 and self.normalises_samples():
            raise DataError(
                "Expected batches of at least 2 samples in training, since a BatchNorm normalises over them, but got 1",
                hint="leave an incomplete last batch out: DataLoader(..., drop_last=True)",
            )
        engine = self._engine(inputs)
        if engine is not None:
            self._program = self._program or TrainingProgram(self.network, self.signature)
            obstacle = self._program.obstacle()
            if obstacle is None:
                return self._program(inputs, engine)
            self._say_slow(obstacle)
        return self.network(*inputs)

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

    def _engine(self, inputs: tuple[Tensor, ...]) -> Engine | None:
        """Return what computes a training step on codes, or None where modules compute one by one."""
        device = inputs[0].device.type
        takes = next(self.parameters()).dtype == torch.float32 and all(
            x.dtype == torch.float32 or not x.is_floating_point() for x in inputs
        )
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
