"""The CPT model: a traced network of quantized layers that share one precision state."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from cpt_deploy.errors import CptWarning, DataError, UsageError
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, module_of
from cpt_deploy.quantization.graph.results import Structure
from cpt_deploy.quantization.kernels import active
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.scheduled_model import LayerInfo, ScheduledModel
from cpt_deploy.quantization.state.config import REAL_ZERO_POINTS, QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.training_step.execution_path import ExecutionPath
from cpt_deploy.quantization.training_step.fused_operations import Engine
from cpt_deploy.quantization.training_step.fused_step import FusedStep
from cpt_deploy.quantization.training_step.products import Compute, choose_compute
from cpt_deploy.signature import Signature

#: Quantized values of more bits fit neither into a byte nor into the significand of bfloat16.
CODE_BITS = 8
#: Keys of `node.meta` that preparing and fusion set.
_NOTED = ("shape", "dtype", IS_FLOAT)


@dataclass(frozen=True, slots=True)
class Calling:
    """Arguments and result structure of a model.

    Attributes:
        parameters: Names of its arguments, in the order of the signature's inputs.
        structure: Structure of the result.
    """

    parameters: tuple[str, ...]
    structure: Structure

    def inputs(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the input tensors of a call.

        Raises:
            UsageError: If the arguments are not those that the model was prepared with.
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


class QuantizedModel(ScheduledModel):
    """A model made by `prepare`; it is called like the float model.

    Attributes:
        network: The traced graph with its layers and activation quantizers; it takes the tensors of the signature, and
            returns one tensor, or a tuple of several.
        precision: The current bits.
        config: The configuration that it was prepared with.
        signature: Names, types and shapes of its inputs and outputs.
        calling: Its arguments and result structure.
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
        self._fused: FusedStep | None = None
        self._obstacles: set[str] = set()
        self._normalises_samples: bool | None = None

    def forward(self, *args: Any, **named: Any) -> Any:
        """Return the results of the network at the present bits, in the structure of the float model's."""
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
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            path = self.execution_path(*inputs)
            if path.fused:
                return self._fused_step()(inputs, self._engine(path, x.device.type))
            if path.hindered:
                self._say_slow(path.reason)
        return self.network(*inputs)

    def execution_path(self, *inputs: Tensor) -> ExecutionPath:
        """Return how a training step on a batch would run now, and why.

        Args:
            inputs: The batch, of which only dtypes and device matter; by default float32 on the model's device.

        Raises:
            UsageError: If `compute` is a setting that the processor does not support.
        """
        own = next(self.parameters())
        device = inputs[0].device.type if inputs else own.device.type
        excluded = self._excluded(device, {own.dtype, *(x.dtype for x in inputs if x.is_floating_point())})
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
        """Return why no step on such a device and dtypes can be fused, whatever the settings; None if it can."""
        bits = self.precision.most_bits
        reasons = {
            REAL_ZERO_POINTS: self.config.scheme == "sbm",
            "the model is in evaluation mode": not self.training,
            "gradients are off": not torch.is_grad_enabled(),
            f"there are no kernels for {device!r}": device not in ("cpu", "cuda"),
            "weights and inputs are not all float32": dtypes != {torch.float32},
            "autocast is on": device == "cpu" and torch.is_autocast_enabled("cpu"),
            f"integers of {bits} bits do not fit into a byte": bits > CODE_BITS,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _fused_step(self) -> FusedStep:
        self._fused = self._fused or FusedStep(self.network, self.signature)
        return self._fused

    @staticmethod
    def _engine(path: ExecutionPath, device: str) -> Engine:
        dtype = torch.bfloat16 if path.compute == "bf16" else torch.float32
        return Engine(active(device).kernels, dtype, replayable=device == "cuda")

    def _say_slow(self, obstacle: str) -> None:
        if obstacle not in self._obstacles:
            self._obstacles.add(obstacle)
            warnings.warn(
                f"training steps run module by module, not on integers, which is slower: {obstacle}",
                CptWarning,
                stacklevel=3,
            )

    def normalises_samples(self) -> bool:
        """Return whether a BatchNorm sees one value per channel and sample, so that it needs more than one sample."""
        if self._normalises_samples is None:
            self._normalises_samples = any(
                isinstance(module_of(node, self.network), _BatchNorm) and math.prod(node.meta["shape"][2:]) == 1
                for node in self.network.graph.nodes
            )
        return self._normalises_samples

    def modules_replaced(self) -> None:
        """Drop the fused step after modules of the network were replaced; to be called by whoever replaces them."""
        self._fused = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the fused step, which copies build themselves, and add the node metadata that pickling would lose."""
        notes = [{key: node.meta[key] for key in _NOTED if key in node.meta} for node in _called(self.network)]
        return {**self.__dict__, "_fused": None, "_notes": notes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the metadata of the graph's nodes."""
        notes = state.pop("_notes")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for node, noted in zip(_called(self.network), notes, strict=True):
            node.meta.update(noted)

    def quantizers(self) -> Iterator[tuple[str, ActivationQuantizer]]:
        """Yield name and quantizer of every activation, in the order of the graph."""
        for path, module in self.network.named_modules():
            if isinstance(module, ActivationQuantizer):
                yield path.rpartition(".")[2], module


def _called(network: fx.GraphModule) -> list[fx.Node]:
    """Return the inputs and calls of a graph, whose order pickling keeps, but not their names."""
    return [node for node in network.graph.nodes if node.op not in ("get_attr", "output")]
