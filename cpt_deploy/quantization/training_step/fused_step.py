"""The training step of a prepared network as a list of segments on codes, made from the same graph and modules.

Where the frozen network will have one integer operation this has one segment; what has no segment runs as the module
that it is, on real values.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx, nn

from cpt_deploy.quantization.graph.capture.tracer import is_stochastic_depth
from cpt_deploy.quantization.graph.capture.tracing import propagate_shapes, results_of
from cpt_deploy.quantization.graph.operator_kinds import Kind, classify, computes
from cpt_deploy.quantization.kernels import Clamp, Grid
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer, LayerInput
from cpt_deploy.quantization.modules.layers import QuantizedConv2d, QuantizedConvTranspose2d, QuantizedLinear
from cpt_deploy.quantization.modules.synchronized_norm import SynchronizedBatchNorm1d, SynchronizedBatchNorm2d
from cpt_deploy.quantization.state.precision_state import Role
from cpt_deploy.quantization.training_step.fused_layers import LayerSegment, layer_output
from cpt_deploy.quantization.training_step.fused_operations import AddSegment, Coded, Engine, decode, encode, requantize
from cpt_deploy.signature import Signature

_ADDITIONS = (operator.add, torch.add)


def _scales(module: nn.Module | None) -> bool:
    """Return whether a module keeps codes in evaluation, but scales in training what it does not drop."""
    return isinstance(module, nn.modules.dropout._DropoutNd) or is_stochastic_depth(module)


@dataclass(slots=True)
class _Step:
    """One operation.

    Args:
        result: Name of what it yields.
        run: Takes the values of `inputs`.
        inputs: Names of what it reads.
        finished: Names that nothing reads afterwards.
    """

    result: str
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    finished: list[str] = field(default_factory=list)


class _Segment(NamedTuple):
    """Nodes that are one operation on codes: what runs, which they are but the quantizer at the end, what it reads."""

    run: Callable[..., Coded]
    inside: list[fx.Node]
    inputs: list[fx.Node]


class TrainingProgram:
    """Runs a network in training on codes.

    Args:
        network: The traced network of a prepared model, with its layers and edges.
        signature: Its inputs and outputs.
    """

    def __init__(self, network: fx.GraphModule, signature: Signature) -> None:
        propagate_shapes(network, signature)
        self._builder = _Builder(network)
        self._steps, self._inputs, self._outputs = self._builder.build()
        self._modules = list(network.modules())
        self._names = {module: name for name, module in network.named_modules()}
        followed = (EdgeQuantizer, nn.modules.batchnorm._BatchNorm)
        self._followed = [module for module in self._modules if isinstance(module, followed)]

    def obstacle(self) -> str | None:
        """Return in words what is not as the program takes it: hooks, or what does not follow the batch in training."""
        for followed in self._followed:
            if not followed.training:
                return f"{self._names[followed]!r} is in evaluation mode"
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
        """Return the results, float32, of a batch: one tensor, or a tuple of several."""
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
    """Makes the steps of a graph.

    A node's value is real under the node's name, and on codes under the name of `_coded`; either is made from the
    other when something reads it.
    """

    engine: Engine

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.kinds = {node: classify(node, network) for node in network.graph.nodes if computes(node)}
        self.steps: list[_Step] = []
        self.made: set[str] = set()

    def build(self) -> tuple[list[_Step], list[str], list[str]]:
        nodes = list(self.network.graph.nodes)
        segments = {node: segment for node in nodes if (segment := self._segment(node)) is not None}
        inside = {inner for segment in segments.values() for inner in segment.inside}
        given, outputs = list[str](), list[str]()
        for node in nodes:
            if node.op == "placeholder":
                given.append(node.name)
                self.made.add(node.name)
            elif node.op == "output":
                outputs = [self._real(result) for result in results_of(self.network.graph)]
            elif node in segments:
                segment = segments[node]
                self._add(_coded(node), segment.run, *(self._codes(source) for source in segment.inputs))
            elif self.kinds.get(node) is Kind.EDGE:
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
        """Return the name of a node's codes; where an operation moved or chose among them, found again on the grid."""
        name = _coded(node)
        if name not in self.made:
            grid = self._grid_of(node)
            assert grid is not None
            self._add(name, lambda x: encode(x, grid(), self.engine), self._real(node))
        return name

    def _grid_of(self, node: fx.Node) -> Callable[[], Grid] | None:
        """Return what tells the grid on which a node's value lies, if it lies on one."""
        module = self._module(node)
        if isinstance(module, EdgeQuantizer):
            return module.grid
        if isinstance(module, LayerInput):
            return lambda: module.source.grid(module.role)
        keeps = self.kinds.get(node) is Kind.KEEP and not _scales(module)
        sources = [source for source in node.all_input_nodes if source in self.kinds]
        return self._grid_of(sources[0]) if keeps and len(sources) == 1 else None

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    # --- operations -----------------------------------------------------------------------------------------------

    def _segment(self, edge: fx.Node) -> _Segment | None:
        """Return the segment that ends with an edge's quantizer, unless its nodes are read by others too.

        A residual sum in float, for one, reads a layer's real output beside the quantizer of the next layer.
        """
        segment = self._ending_with(edge)
        return segment if segment is not None and all(len(node.users) == 1 for node in segment.inside) else None

    def _ending_with(self, edge: fx.Node) -> _Segment | None:
        quantizer = self._module(edge)
        if not isinstance(quantizer, EdgeQuantizer):
            return None
        node, inside, clamp, norm = edge.all_input_nodes[0], list[fx.Node](), Clamp(), None
        if self.kinds.get(node) is Kind.CLAMP:
            clamp = _bounds(self._module(node))
            inside.append(node)
            node = node.all_input_nodes[0]
        if node.target in _ADDITIONS and self._are_quantized(node.args) and not node.kwargs:
            add = AddSegment(clamp, quantizer)
            return _Segment(lambda a, b: add(a, b, self.engine), [*inside, node], list(node.all_input_nodes))
        if self.kinds.get(node) is Kind.NORM:
            norm = self._module(node)
            if not _is_ordinary(norm):
                return None
            inside.append(node)
            node = node.all_input_nodes[0]
        layer = self._module(node)
        if not _has_products(layer) or self._grid_of(node.all_input_nodes[0]) is None:
            return None
        whole = LayerSegment(layer, norm, clamp, quantizer)  # type: ignore[arg-type]
        return _Segment(lambda x: whole(x, self.engine), [*inside, node], list(node.all_input_nodes))

    def _are_quantized(self, nodes: Any) -> bool:
        """Return whether two different nodes, of one shape, are quantizers."""
        shapes = {node.meta.get("shape") for node in nodes if isinstance(node, fx.Node)}
        quantizers = [isinstance(self._module(node), EdgeQuantizer) for node in nodes if isinstance(node, fx.Node)]
        return quantizers == [True, True] and len(set(nodes)) == 2 and len(shapes) == 1

    def _quantizer(self, node: fx.Node) -> None:
        module, source = self._module(node), node.all_input_nodes[0]
        if isinstance(module, LayerInput):
            edge, role = module.source, module.role
            if _coded(source) in self.made:
                self._add(_coded(node), lambda x: _at_bits_of(role, x, edge, self.engine), _coded(source))
            else:
                self._add(_coded(node), lambda x: encode(x, edge.grid(role), self.engine), self._real(source))
            return
        assert isinstance(module, EdgeQuantizer)
        self._add(_coded(node), lambda x: _observe(x, module, self.engine), self._real(source))

    def _plain(self, node: fx.Node) -> None:
        """Run a node as the graph says, on real values; a layer's products are on codes nevertheless."""
        layer = self._module(node)
        if _has_products(layer) and self._grid_of(node.all_input_nodes[0]) is not None:
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


def _observe(x: Tensor, edge: EdgeQuantizer, engine: Engine) -> Coded:
    x = x.float()
    edge.take(*engine.kernels.range(x.detach()), engine.kernels)
    return encode(x, edge.grid(), engine)


def _at_bits_of(role: Role, x: Coded, edge: EdgeQuantizer, engine: Engine) -> Coded:
    """Bring codes to the bits of cycling layers; at the upper bound they are there."""
    bits = edge.precision.activation_bits
    same = bits[role] == bits["hold"] and not engine.replayable
    return x if same else requantize(x, edge.grid(role), engine)


def _coded(node: fx.Node) -> str:
    return f"{node.name} codes"


def _bounds(module: nn.Module | None) -> Clamp:
    """Return the bounds of a ReLU, ReLU6 or Hardtanh."""
    if isinstance(module, nn.Hardtanh):
        return Clamp(module.min_val, module.max_val)
    return Clamp(low=0.0)


def _is_ordinary(norm: nn.Module | None) -> bool:
    """Return whether a normalisation has parameters and running averages, and is of no other kind of BatchNorm."""
    known = (nn.BatchNorm1d, nn.BatchNorm2d, SynchronizedBatchNorm1d, SynchronizedBatchNorm2d)
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or type(norm) not in known:
        return False
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def _has_products(layer: nn.Module | None) -> TypeGuard[QuantizedConv2d | QuantizedConvTranspose2d | QuantizedLinear]:
    if isinstance(layer, QuantizedConv2d):
        return not isinstance(layer.padding, str)
    return isinstance(layer, QuantizedConvTranspose2d | QuantizedLinear)
