"""From a CPT model to an integer graph: each run of nodes between two quantizers becomes one integer operation."""

import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.integer.accumulators import check_accumulators
from cpt_deploy.integer.convolutions import average, depthwise, fields_of, has_positions, pads_of
from cpt_deploy.integer.graph import (
    Add,
    Concatenate,
    Convolution,
    FullyConnected,
    GlobalAverage,
    IntegerGraph,
    Multiply,
    Operation,
    Quantize,
    QuantizedTensor,
    Reshape,
    with_names,
)
from cpt_deploy.integer.lowering.float_parts import INPUT, FloatLowering
from cpt_deploy.integer.lowering.lookup import tabulate
from cpt_deploy.integer.lowering.movements import KeptTensor, lower_kept
from cpt_deploy.integer.lowering.paddings import with_paddings_inside
from cpt_deploy.integer.lowering.quantized_tensors import edge_tensor
from cpt_deploy.integer.lowering.subpixel import transposed_convolution
from cpt_deploy.quantization.graph.capture.constants import ChannelwiseConstant, Constant
from cpt_deploy.quantization.graph.capture.tracing import propagate_shapes, results_of, sizes_of
from cpt_deploy.quantization.graph.entries import has_float_operations
from cpt_deploy.quantization.graph.naming import own_name
from cpt_deploy.quantization.graph.operator_kinds import Kind, classify, computes
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modules.activation_quantizer import EdgeQuantizer, LayerInput
from cpt_deploy.quantization.modules.layers import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
)
from cpt_deploy.quantization.numerics.folding import (
    BIAS_LIMIT,
    FLOAT_BIAS_LIMIT,
    Floats,
    channelwise,
    fold_layer,
    normalisation,
)
from cpt_deploy.quantization.state.config import MOST_INTEGER_BITS
from cpt_deploy.quantization.state.precision_state import Role
from cpt_deploy.quantization.state.scheduled_model import WeightBits


def freeze(
    model: QuantizedModel, *, weight_bits: WeightBits = None, activation_bits: int | None = None
) -> IntegerGraph:
    """Freeze a model to integers, at the upper bound (at most 8 bits) or at the bits asked for.

    Layers and edges that hold the upper bound keep it; where a cycling layer reads such an edge, a table brings its
    codes to the cycling activations' bits. The model must have been settled at these bits (`settle`). After
    `make_symmetric` all activations are signed, and each ReLU is an operation of its own.

    Args:
        model: A trained CPT model; it is not changed.
        weight_bits: Bits of the cycling layers' weights, or of single layers by name, 2 to 8; None is the upper bound.
        activation_bits: Bits of the cycling activations, 2 to the upper bound; None is the upper bound.

    Raises:
        UsageError: If the bits are out of range, or given for a layer that the model does not have.
        ConversionError: If an edge has not seen any data, an operation cannot be executed in integers, or a sum could
            leave int32.
    """
    upper = min(model.config.upper, MOST_INTEGER_BITS)
    given = weight_bits.values() if isinstance(weight_bits, Mapping) else [weight_bits or upper]
    for bits in given:
        if not 2 <= bits <= MOST_INTEGER_BITS:
            raise UsageError(f"Expected bits to export between 2 and {MOST_INTEGER_BITS}, but got {bits}")
    if activation_bits is not None and not 2 <= activation_bits <= upper:
        raise UsageError(
            f"Expected bits of activations between 2 and the upper bound {upper}, but got {activation_bits}"
        )
    graph = with_paddings_inside(_Lowering(model, weight_bits, activation_bits or upper).run())
    check_accumulators(graph)
    return with_names(graph, _other_names(graph))


def _other_names(graph: IntegerGraph) -> dict[str, str]:
    """Return new names of tensors that are called as an input or output: nodes have names of the model's own code."""
    taken = {*graph.tensors, *graph.signature.names}
    names = {INPUT + tensor.name: tensor.name for tensor in graph.signature.inputs}
    for name in graph.signature.names:
        if name in graph.tensors:
            names[name] = f"{name}_codes"
            while names[name] in taken:
                names[name] += "_"
            taken.add(names[name])
    return names


class _Lowering:
    """Walks the graph once; `tensors` maps each finished node to its quantized tensor."""

    def __init__(self, model: QuantizedModel, weight_bits: WeightBits, activation_bits: int) -> None:
        self.network = model.network
        self.upper = min(model.config.upper, MOST_INTEGER_BITS)
        self.layer_bits = {name: min(bits, MOST_INTEGER_BITS) for name, bits in model.layer_bits(weight_bits).items()}
        self.activation_bits = activation_bits
        self.precision = model.precision
        self.finished: dict[fx.Node, QuantizedTensor] = {}
        self.parts: dict[fx.Node, KeptTensor] = {}
        self.operations: list[Operation] = []
        self.tensors: dict[str, QuantizedTensor] = {}
        self.names = {node.name for node in model.network.graph.nodes}
        self.signature = model.signature
        propagate_shapes(self.network, model.signature)
        self.has_floats = has_float_operations(self.network)
        self.floats = FloatLowering(self.network, self.finished, model.signature)

    def run(self) -> IntegerGraph:
        if self.has_floats:
            self._run_with_floats(self.floats)
        else:
            self._run_integers()
        outputs = tuple(self.floats.name_of(node) for node in results_of(self.network.graph))
        return IntegerGraph(self.signature, outputs, tuple(self.operations), self.tensors)

    def _run_integers(self) -> None:
        for node in self.network.graph.nodes:
            module = self._module(node)
            if isinstance(module, EdgeQuantizer):
                self._lower_edge(node, module)
            elif isinstance(module, LayerInput):
                self._lower_layer_input(node, module)
            elif self._is_kept(node):
                self._lower_kept(node)

    def _run_with_floats(self, floats: FloatLowering) -> None:
        for node in self.network.graph.nodes:
            module = self._module(node)
            if node.op in ("placeholder", "output"):
                continue
            if isinstance(module, EdgeQuantizer) and node.all_input_nodes[0] in floats.names:
                name = self._new_name(f"{own_name(node)}_codes")
                bits = max(self._bits_of(module.role), module.least_bits)
                self._finish(node, edge_tensor(name, module, bits, sizes_of(node)))
                self.operations.append(Quantize((floats.names[node.all_input_nodes[0]],), name))
            elif isinstance(module, EdgeQuantizer):
                self._lower_edge(node, module)
            elif isinstance(module, LayerInput):
                self._lower_layer_input(node, module)
            elif isinstance(module, QuantizedLinear):
                operation = self._lower_layer(node, None, self.finished[node.all_input_nodes[0]], None)
                self.operations.append(operation)
                floats.names[node] = operation.output
            else:
                self.operations.extend(floats.lower(node, self.layer_bits))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_kept(self, node: fx.Node) -> bool:
        if not computes(node):
            return False
        reads = [source for source in node.all_input_nodes if source in self.finished or source in self.parts]
        return bool(reads) and classify(node, self.network) is Kind.KEEP

    # --- edges --------------------------------------------------------------------------------------------------

    def _lower_edge(self, node: fx.Node, edge: EdgeQuantizer) -> None:
        chain = self._chain(node.all_input_nodes[0])
        name = own_name(node)
        bits = self._bits_of(edge.role)
        tensor = edge_tensor(name, edge, max(bits, edge.least_bits), sizes_of(node))
        head = chain[0]
        if head.op == "placeholder":
            self.operations.append(Quantize((self.floats.names[head],), name))
        else:
            sources = tuple(self.finished[source] for source in head.all_input_nodes if source in self.finished)
            clamped = any(classify(part, self.network) is Kind.CLAMP for part in chain[1:])
            made = replace(tensor, name=self._new_name(f"{name}_unclamped")) if tensor.signed and clamped else tensor
            operation, made = self._lower_chain(chain, sources, made)
            self.operations.append(operation)
            if tensor.signed and clamped:  # where the least code is not real zero, saturation is no ReLU
                self.tensors[made.name] = made
                operation, tensor = tabulate(nn.ReLU(), made, tensor)
                self.operations.append(operation)
            else:
                tensor = made
        self._finish(node, tensor)

    def _lower_layer_input(self, node: fx.Node, module: LayerInput) -> None:
        source, bits = self.finished[node.all_input_nodes[0]], self._bits_of(module.role)
        if bits == self.upper:
            self.finished[node] = source
            return
        name = self._new_name(f"{own_name(node)}_input")
        tensor = edge_tensor(name, module.source, bits, source.shape)
        operation, tensor = tabulate(nn.Identity(), source, tensor)
        self.operations.append(operation)
        self._finish(node, tensor)

    def _bits_of(self, role: Role) -> int:
        """Return the bits at which activations of a role are frozen."""
        return self.upper if role == "hold" else min(self.activation_bits, self.precision.upper_of(role))

    def _finish(self, node: fx.Node, tensor: QuantizedTensor) -> None:
        self.finished[node] = tensor
        self.tensors[tensor.name] = tensor

    def _new_name(self, name: str) -> str:
        """Return a name that no node and no tensor has."""
        while name in self.names or name in self.tensors:
            name += "_"
        self.names.add(name)
        return name

    def _chain(self, end: fx.Node) -> list[fx.Node]:
        """Return the nodes from the first that reads finished tensors to `end`."""
        chain = [end]
        while chain[0].op != "placeholder" and not any(node in self.finished for node in chain[0].all_input_nodes):
            chain.insert(0, chain[0].all_input_nodes[0])
        return chain

    def _lower_chain(
        self, chain: list[fx.Node], sources: tuple[QuantizedTensor, ...], output: QuantizedTensor
    ) -> tuple[Operation, QuantizedTensor]:
        kind = classify(chain[0], self.network)
        module = self._module(chain[0])
        if kind in (Kind.TABLE, Kind.CLAMP):
            assert module is not None
            if output.signed or not isinstance(module, nn.Hardsigmoid):
                return tabulate(module, sources[0], output)
        return self._lower_arithmetic(chain, kind, sources, output), output

    def _lower_arithmetic(
        self, chain: list[fx.Node], kind: Kind, sources: tuple[QuantizedTensor, ...], output: QuantizedTensor
    ) -> Operation:
        head = chain[0]
        names = tuple(source.name for source in sources)
        if kind is Kind.LAYER:
            return self._lower_layer(head, self._norm_in(chain[1:]), sources[0], output)
        if kind in (Kind.NORM, Kind.CONSTANT, Kind.AVERAGE, Kind.TABLE):
            return self._lower_channelwise(head, kind, sources[0], output)
        if kind is Kind.CONCATENATE:
            axis = int(head.kwargs.get("dim", head.args[1] if len(head.args) > 1 else 0))  # type: ignore[arg-type]
            order = tuple(self.finished[source].name for source in head.args[0])  # type: ignore[union-attr,index]
            return Concatenate(order, output.name, axis % (len(output.shape) + 1))
        if kind in (Kind.ADD, Kind.MULTIPLY):
            pair = names if len(names) == 2 else (names[0], names[0])
            return (Add if kind is Kind.ADD else Multiply)(pair, output.name)
        assert kind is Kind.GLOBAL_AVERAGE, kind
        return self._lower_global_average(names, output)

    def _norm_in(self, nodes: list[fx.Node]) -> nn.BatchNorm1d | nn.BatchNorm2d | None:
        for node in nodes:
            module = self._module(node)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                return module
        return None

    # --- operations -----------------------------------------------------------------------------------------------

    def _lower_layer(
        self,
        node: fx.Node,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        source: QuantizedTensor,
        output: QuantizedTensor | None,
    ) -> Operation:
        layer = self._module(node)
        assert isinstance(layer, QuantizedLayer)
        bits = self.layer_bits[str(node.target)]
        folded = fold_layer(layer, norm, bits, source.scale, _bias_limit(source))
        if isinstance(layer, QuantizedConvTranspose1d | QuantizedConvTranspose2d):
            assert output is not None
            *before, last = transposed_convolution(layer, folded, bits, (source, output, str(node.target)))
            self.operations.extend(operation for operation, _ in before)
            self.tensors.update({tensor.name: tensor for _, tensor in before})
            return last[0]
        weights: dict[str, Any] = {"bits": bits, **fields_of(folded)}
        ends: dict[str, Any] = {"inputs": (source.name,), "source": str(node.target)}
        ends["output"] = self.floats.real_name(node) if output is None else output.name
        if isinstance(layer, QuantizedLinear):
            return FullyConnected(**ends, **weights)
        assert isinstance(layer, QuantizedConv1d | QuantizedConv2d)
        return Convolution(
            **ends,
            **weights,
            strides=layer.stride,
            pads=pads_of(layer),
            dilations=layer.dilation,
            groups=layer.groups,
        )

    def _lower_channelwise(
        self, node: fx.Node, kind: Kind, source: QuantizedTensor, output: QuantizedTensor
    ) -> Operation:
        """Lower what scales and shifts each channel, to a depthwise convolution over positions."""
        if not has_positions(source):
            return self._with_positions(node, kind, source, output)
        module = self._module(node)
        dimensions, channels = len(source.shape) - 1, source.channels
        if kind is Kind.AVERAGE:
            assert module is not None
            return average(module, source, output)
        if kind is Kind.NORM:
            factor, offset = normalisation(module, channels)  # type: ignore[arg-type]
        elif isinstance(module, nn.Hardsigmoid):
            # x/6 + 1/2, cut at 0 by the zero point and at 1 by the greatest code: the observed range lies in [0, 1]
            factor, offset = np.full(channels, 1 / 6), np.full(channels, 0.5)
        else:
            assert isinstance(module, ChannelwiseConstant)
            factor, offset = (_of_channels(value, channels) for value in (module.factor, module.offset))
        folded = channelwise(factor, offset, dimensions, source.scale, _bias_limit(source))
        return depthwise(folded, source, output, str(node.target), (1,) * dimensions, (0,) * 2 * dimensions)

    def _with_positions(self, node: fx.Node, kind: Kind, source: QuantizedTensor, output: QuantizedTensor) -> Operation:
        """Lower it on features, or on more than two dimensions of positions, which become one."""
        positions = [size for size in source.shape[1:] if size is not None]
        if len(positions) < len(source.shape) - 1:
            raise ConversionError(f"Expected positions of {source.name!r} of known sizes, but some are free")
        shape = (source.channels, math.prod(positions), 1)
        given, made = (
            replace(tensor, name=self._new_name(f"{output.name}_{part}"), shape=shape)
            for tensor, part in ((source, "given"), (output, "made"))
        )
        self.operations.append(_reshape(source, given))
        self.operations.append(self._lower_channelwise(node, kind, given, made))
        self.tensors.update({given.name: given, made.name: made})
        return _reshape(made, output)

    def _lower_global_average(self, names: tuple[str, ...], output: QuantizedTensor) -> Operation:
        if len(output.shape) == 3:
            return GlobalAverage(names, output.name)
        # `x.mean([2, 3])` drops the spatial dimensions; the pooled tensor keeps them and is flattened.
        pooled = replace(output, name=self._new_name(f"{output.name}_pooled"), shape=(*output.shape, 1, 1))
        self.tensors[pooled.name] = pooled
        self.operations.append(GlobalAverage(names, pooled.name))
        return _reshape(pooled, output)

    # --- what only moves codes --------------------------------------------------------------------------------------

    def _lower_kept(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        if source in self.parts:
            index = int(node.args[1]) if node.target is operator.getitem else 0  # type: ignore[arg-type]
            operation, tensor = self.parts[source].part(index, node.name)
            self.operations.append(operation)
            self._finish(node, tensor)
            return
        lowered = lower_kept(node, self._module(node), self.finished[source])
        if isinstance(lowered, KeptTensor):
            self.parts[node] = lowered
        elif lowered is None:
            self.finished[node] = self.finished[source]
        else:
            self.operations.append(lowered[0])
            self._finish(node, lowered[1])


def _bias_limit(source: QuantizedTensor) -> int:
    """Return the greatest bias code of a layer; beside signed activations biases are stored in float."""
    return FLOAT_BIAS_LIMIT if source.signed else BIAS_LIMIT


def _of_channels(value: Constant, channels: int) -> Floats:
    """Return a constant as float64 (C,)."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    return np.broadcast_to(array.reshape(-1), channels)


def _reshape(source: QuantizedTensor, output: QuantizedTensor) -> Operation:
    return Reshape((source.name,), output.name)
