"""The fused training step: a list of fused operations, built from the graph and modules of a prepared network.

Each integer operation of the frozen network is one fused operation; all others run as modules, on real values.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from cpt_deploy.quantization.graph.fusion import FusedOperation, Norm, fused_operations, quantizer_of
from cpt_deploy.quantization.graph.operator_kinds import Kind, kind_of, module_of
from cpt_deploy.quantization.graph.shapes import propagate_shapes, results_of
from cpt_deploy.quantization.kernels import QuantizationParameters
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear
from cpt_deploy.quantization.state.precision_state import PrecisionGroup
from cpt_deploy.quantization.training_step.fused_layers import FusedLayer, layer_output
from cpt_deploy.quantization.training_step.fused_operations import (
    Engine,
    FusedAdd,
    QuantizedValues,
    decode,
    encode,
    requantize,
)
from cpt_deploy.signature import Signature


@dataclass(slots=True)
class _Step:
    """One operation of the step.

    Args:
        result: Name of its result.
        run: Function of the values of `inputs`.
        inputs: Names of the values that it reads.
        finished: Names of values that nothing reads afterwards.
    """

    result: str
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    finished: list[str] = field(default_factory=list)


class FusedStep:
    """Runs a network in training on quantized values.

    Args:
        network: The traced network of a prepared model, with its layers and activations.
        signature: Its inputs and outputs.
    """

    def __init__(self, network: fx.GraphModule, signature: Signature) -> None:
        propagate_shapes(network, signature)
        self._builder = _Builder(network)
        self._steps, self._inputs, self._outputs = self._builder.build()
        self._modules = list(network.modules())
        self._names = {module: name for name, module in network.named_modules()}
        with_statistics = (ActivationQuantizer, nn.modules.batchnorm._BatchNorm)
        self._with_statistics = [module for module in self._modules if isinstance(module, with_statistics)]

    def obstacle(self) -> str | None:
        """Describe what prevents the fused step: hooks, or modules in evaluation mode; None if nothing does."""
        for tracked in self._with_statistics:
            if not tracked.training:
                return f"{self._names[tracked]!r} is in evaluation mode"
        for module in self._modules:
            for kind, hooks in (
                ("forward hook", module._forward_hooks),
                ("forward pre-hook", module._forward_pre_hooks),
                ("backward hook", module._backward_hooks),
                ("backward pre-hook", module._backward_pre_hooks),
            ):
                if hooks:
                    return f"there is a {kind} on " + (repr(self._names[module]) if self._names[module] else "network")
        return None

    def __call__(self, inputs: tuple[Tensor, ...], engine: Engine) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs of a batch, float32: one tensor, or a tuple of several."""
        values: dict[str, Any] = {
            name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            for name, x in zip(self._inputs, inputs, strict=True)
        }
        self._builder.engine = engine
        for step in self._steps:
            values[step.result] = step.run(*(values[name] for name in step.inputs))
            for name in step.finished:
                del values[name]
        results = tuple(values[name] for name in self._outputs)
        return results[0] if len(results) == 1 else results


class _Builder:
    """Builds the steps of a graph.

    The real value of a node has the node's name, its quantized value the name from `_coded`; either is computed from
    the other when something reads it.
    """

    engine: Engine

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.steps: list[_Step] = []
        self.made: set[str] = set()

    def build(self) -> tuple[list[_Step], list[str], list[str]]:
        nodes = list(self.network.graph.nodes)
        operations = fused_operations(self.network)
        all_fused = {o.quantizer: (o, run) for o in operations if (run := self._fused(o)) is not None}
        inside = {node for operation, _ in all_fused.values() for node in operation.nodes}
        given, outputs = list[str](), list[str]()
        for node in nodes:
            if node.op == "placeholder":
                given.append(node.name)
                self.made.add(node.name)
            elif node.op == "output":
                outputs = [self._real(result) for result in results_of(self.network.graph)]
            elif node in all_fused:
                operation, run = all_fused[node]
                self._add(_coded(node), run, *(self._codes(source) for source in operation.head.all_input_nodes))
            elif kind_of(node, self.network) is Kind.QUANTIZER:
                self._quantizer(node)
            elif node not in inside:
                self._plain(node)
        self._note_last_uses(outputs)
        return self.steps, given, outputs

    def _add(self, result: str, run: Callable[..., Any], *inputs: str) -> str:
        self.steps.append(_Step(result, run, inputs))
        self.made.add(result)
        return result

    def _note_last_uses(self, outputs: list[str]) -> None:
        last = {name: step for step in self.steps for name in (step.result, *step.inputs)}
        for name, step in last.items():
            if name not in outputs:
                step.finished.append(name)

    # --- values -------------------------------------------------------------------------------------------------

    def _real(self, node: fx.Node) -> str:
        """Return the name of a node's real value."""
        if node.name not in self.made:
            self._add(node.name, lambda x: decode(x, self.engine), _coded(node))
        return node.name

    def _codes(self, node: fx.Node) -> str:
        """Return the name of a node's quantized values; values that were moved or selected are encoded again."""
        name = _coded(node)
        if name not in self.made:
            qparams = self._qparams_of(node)
            assert qparams is not None
            self._add(name, lambda x: encode(x, qparams(), self.engine), self._real(node))
        return name

    def _qparams_of(self, node: fx.Node) -> Callable[[], QuantizationParameters] | None:
        """Return a function that yields the quantization parameters of a node's value; None if it is not quantized."""
        module = quantizer_of(node, self.network, training=True)
        if isinstance(module, Requantize):
            return lambda: module.source.qparams(module.group)
        return None if module is None else module.qparams

    def _module(self, node: fx.Node | None) -> nn.Module | None:
        return module_of(node, self.network)

    # --- operations -----------------------------------------------------------------------------------------------

    def _fused(self, operation: FusedOperation) -> Callable[..., QuantizedValues] | None:
        """Return the function that computes an operation fused; None if it runs module by module."""
        layer, quantizer = self._module(operation.head), self._module(operation.quantizer)
        sources = operation.head.all_input_nodes
        if not isinstance(quantizer, ActivationQuantizer):
            return None
        if operation.kind is Kind.ADD and self._are_quantized(sources):
            add = FusedAdd(operation.clamp, quantizer)
            return lambda a, b: add(a, b, self.engine)
        if not _has_products(layer) or self._qparams_of(sources[0]) is None or not _is_ordinary(operation.norm):
            return None
        whole = FusedLayer(layer, operation.norm, operation.clamp, quantizer)
        return lambda x: whole(x, self.engine)

    def _are_quantized(self, nodes: list[fx.Node]) -> bool:
        """Return whether nodes are the quantized values of two different quantizers, of one shape."""
        quantizers = [node for node in nodes if isinstance(self._module(node), ActivationQuantizer)]
        return len(nodes) == len(quantizers) == 2 and len({node.meta["shape"] for node in nodes}) == 1

    def _quantizer(self, node: fx.Node) -> None:
        module, source = self._module(node), node.all_input_nodes[0]
        if isinstance(module, Requantize):
            quantizer, group = module.source, module.group
            if _coded(source) in self.made:
                self._add(_coded(node), lambda x: _at_bits_of(group, x, quantizer, self.engine), _coded(source))
            else:
                self._add(_coded(node), lambda x: encode(x, quantizer.qparams(group), self.engine), self._real(source))
            return
        assert isinstance(module, ActivationQuantizer)
        self._add(_coded(node), lambda x: _observe(x, module, self.engine), self._real(source))

    def _plain(self, node: fx.Node) -> None:
        """Run a node as in the graph, on real values; the products of a layer are still on quantized values."""
        layer = self._module(node)
        if _has_products(layer) and self._qparams_of(node.all_input_nodes[0]) is not None:
            self._add(node.name, lambda x: layer_output(layer, x, self.engine), self._codes(node.all_input_nodes[0]))
            return
        if node.op == "get_attr":
            self._add(node.name, lambda: attrgetter(str(node.target))(self.network))
            return
        sources = list(node.all_input_nodes)
        names = [self._real(source) for source in sources]
        target = self._module(node) or node.target

        def run(*values: Any) -> Any:
            known = dict(zip(sources, values, strict=True))
            arguments = fx.node.map_arg(node.args, known.__getitem__)
            options = fx.node.map_arg(node.kwargs, known.__getitem__)
            if node.op == "call_method":
                return getattr(arguments[0], str(target))(*arguments[1:], **options)
            return target(*arguments, **options)  # type: ignore[operator]

        self._add(node.name, run, *names)


def _observe(x: Tensor, quantizer: ActivationQuantizer, engine: Engine) -> QuantizedValues:
    x = x.float()
    quantizer.take(*engine.kernels.range(x.detach()), engine.kernels)
    return encode(x, quantizer.qparams(), engine)


def _at_bits_of(
    group: PrecisionGroup, x: QuantizedValues, quantizer: ActivationQuantizer, engine: Engine
) -> QuantizedValues:
    """Requantize to the bits of scheduled layers; at max_bits nothing changes."""
    bits = quantizer.precision.activation_bits
    same = bits[group] == bits["fixed"] and not engine.replayable
    return x if same else requantize(x, quantizer.qparams(group), engine)


def _coded(node: fx.Node) -> str:
    return f"{node.name} codes"


def _is_ordinary(norm: Norm | None) -> bool:
    """Return whether a normalisation, if there is one, has parameters and running averages."""
    return norm is None or (norm.affine and norm.track_running_stats and norm.momentum is not None)


def _has_products(layer: nn.Module | None) -> TypeGuard[QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear]:
    if isinstance(layer, QuantizedConv2d):
        return not isinstance(layer.padding, str)
    return isinstance(layer, QuantizedConvTranspose2d | QuantizedLinear)
