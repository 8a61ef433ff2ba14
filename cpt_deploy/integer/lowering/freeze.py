"""Freeze a CPT model to an integer graph: the nodes between two quantizers become one integer operation."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from cpt_deploy.errors import TrainingOnlyError, UsageError
from cpt_deploy.integer.accumulators import check_accumulators
from cpt_deploy.integer.convolutions import fields_of, pads_of
from cpt_deploy.integer.graph import IntegerGraph, with_names
from cpt_deploy.integer.lowering.channel_blocks import in_channel_blocks
from cpt_deploy.integer.lowering.channelwise import Lowered, bias_limit, lower_channelwise, reshape
from cpt_deploy.integer.lowering.float_parts import INPUT, FloatLowering
from cpt_deploy.integer.lowering.lookup import tabulate
from cpt_deploy.integer.lowering.movements import KeptTensor, lower_kept
from cpt_deploy.integer.lowering.paddings import with_paddings_inside
from cpt_deploy.integer.lowering.quantized_tensors import quantized_tensor
from cpt_deploy.integer.lowering.recurrent import lower_recurrent
from cpt_deploy.integer.lowering.subpixel import transposed_convolution
from cpt_deploy.integer.operations import (
    Add,
    Concatenate,
    Convolution,
    Float,
    FullyConnected,
    GlobalAverage,
    Multiply,
    Operation,
    Quantize,
)
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.conversion.activation_quantizers import has_float_operations
from cpt_deploy.quantization.folding import fold_layer
from cpt_deploy.quantization.graph.fusion import FusedOperation, Norm, fused_operations
from cpt_deploy.quantization.graph.naming import own_name
from cpt_deploy.quantization.graph.operator_kinds import Kind, kind_of, module_of
from cpt_deploy.quantization.graph.shapes import propagate_shapes, results_of, sizes_of
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
)
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent
from cpt_deploy.quantization.scheduled_model import WeightBits
from cpt_deploy.quantization.state.config import MAX_INTEGER_BITS
from cpt_deploy.quantization.state.precision_state import PrecisionGroup

_CLAMPS = frozenset({"clamp", "clamp_max", "clamp_min", "clip", "hardtanh", "relu", "relu6"})
"""Operators of PyTorch that become ONNX's Relu or Clip."""


def freeze(
    model: QuantizedModel, *, weight_bits: WeightBits = None, activation_bits: int | None = None
) -> IntegerGraph:
    """Freeze a model to integers, at max_bits (at most 8 bits) or at the requested bits.

    Fixed layers and activations stay at max_bits; where a scheduled layer reads a fixed activation, a table requantizes
    it to the bits of scheduled activations. The model must have been calibrated at these bits (`calibrate`). After
    `make_symmetric` all activations are signed, and each ReLU is a separate operation.

    Args:
        model: A trained CPT model; it is not changed.
        weight_bits: Bits of the scheduled layers' weights, or of single layers by name, 2 to 8; None is max_bits.
        activation_bits: Bits of the scheduled activations, 2 to max_bits; None is max_bits.

    Raises:
        UsageError: If the bits are out of range, or given for a layer that the model does not have.
        ConversionError: If an activation has not seen any data, an operation cannot be executed in integers, a sum
            could leave int32, or the model is of the scheme "sbm", which trains only.
    """
    if model.config.scheme == "sbm":
        raise TrainingOnlyError
    max_bits = min(model.config.max_bits, MAX_INTEGER_BITS)
    given = weight_bits.values() if isinstance(weight_bits, Mapping) else [weight_bits or max_bits]
    for bits in given:
        if not 2 <= bits <= MAX_INTEGER_BITS:
            raise UsageError(f"Expected bits to export between 2 and {MAX_INTEGER_BITS}, but got {bits}")
    if activation_bits is not None and not 2 <= activation_bits <= max_bits:
        raise UsageError(f"Expected bits of activations between 2 and max_bits {max_bits}, but got {activation_bits}")
    graph = _Lowering(model, weight_bits, activation_bits or max_bits).run()
    graph = in_channel_blocks(with_paddings_inside(graph))
    check_accumulators(graph)
    return with_names(graph, _other_names(graph))


def _other_names(graph: IntegerGraph) -> dict[str, str]:
    """Return new names of tensors with the name of an input or output: names of nodes come from the model's code."""
    taken = {*graph.tensors, *graph.signature.names}
    names = {INPUT + tensor.name: tensor.name for tensor in graph.signature.inputs}
    for name in graph.signature.names:
        if name in graph.tensors:
            names[name] = f"{name}_codes"
            while names[name] in taken:
                names[name] += "_"
            taken.add(names[name])
    return names


def _before_clamps(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """Return operations in which layers that a clamp in float reads say so."""
    read = {
        name
        for operation in operations
        if isinstance(operation, Float) and operation.target.split(".")[1] in _CLAMPS
        for name in operation.inputs
    }
    return tuple(
        replace(operation, clamped_in_float=True)
        if isinstance(operation, FullyConnected) and operation.output in read
        else operation
        for operation in operations
    )


class _Lowering:
    """Walks the graph once; `tensors` maps each finished node to its quantized tensor."""

    def __init__(self, model: QuantizedModel, weight_bits: WeightBits, activation_bits: int) -> None:
        self.network = model.network
        self.max_bits = min(model.config.max_bits, MAX_INTEGER_BITS)
        self.layer_bits = {name: min(bits, MAX_INTEGER_BITS) for name, bits in model.layer_bits(weight_bits).items()}
        self.activation_bits = activation_bits
        self.precision = model.precision
        self.finished: dict[fx.Node, QuantizedTensor] = {}
        self.parts: dict[fx.Node, KeptTensor] = {}
        self.operations: list[Operation] = []
        self.tensors: dict[str, QuantizedTensor] = {}
        self.names = {node.name for node in model.network.graph.nodes}
        propagate_shapes(self.network, model.signature)
        self.ending = {operation.quantizer: operation for operation in fused_operations(self.network)}
        self.signature = model.signature
        self.has_floats = has_float_operations(self.network)
        self.floats = FloatLowering(self.network, self.finished, model.signature)

    def run(self) -> IntegerGraph:
        for node in self.network.graph.nodes:
            self._lower(node)
        outputs = tuple(self.floats.name_of(node) for node in results_of(self.network.graph))
        return IntegerGraph(self.signature, outputs, _before_clamps(self.operations), self.tensors)

    def _lower(self, node: fx.Node) -> None:
        module = self._module(node)
        if isinstance(module, ActivationQuantizer):
            self._lower_quantizer(node, module)
        elif isinstance(module, Requantize):
            self._lower_requantize(node, module)
        elif isinstance(module, QuantizedRecurrent):
            self._lower_recurrent(node, module)
        elif not self.has_floats:
            if self._is_kept(node):
                self._lower_kept(node)
        elif isinstance(module, QuantizedLinear):
            operation = self._lower_layer(node, None, self.finished[node.all_input_nodes[0]], None)
            self.operations.append(operation)
            self.floats.names[node] = operation.output
        elif node.op not in ("placeholder", "output"):
            self.operations.extend(self.floats.lower(node, self.layer_bits))

    def _module(self, node: fx.Node) -> nn.Module | None:
        return module_of(node, self.network)

    def _is_kept(self, node: fx.Node) -> bool:
        reads = [source for source in node.all_input_nodes if source in self.finished or source in self.parts]
        return bool(reads) and kind_of(node, self.network) is Kind.KEEP

    # --- activations --------------------------------------------------------------------------------------------------

    def _lower_quantizer(self, node: fx.Node, quantizer: ActivationQuantizer) -> None:
        name, real = own_name(node), self.floats.names.get(node.all_input_nodes[0])
        if real is not None and self.has_floats:
            name = self._new_name(f"{name}_codes")
        bits = max(self._bits_of(quantizer.group), quantizer.min_bits)
        tensor = quantized_tensor(name, quantizer, bits, sizes_of(node))
        if real is not None:
            self.operations.append(Quantize((real,), name))
        else:
            operation = self.ending[node]
            clamps = tensor.signed and operation.clamps  # else saturating at quant_min implements ReLU
            made = replace(tensor, name=self._new_name(f"{name}_unclamped")) if clamps else tensor
            lowered, made = self._lower_operation(operation, made)
            self.operations.append(lowered)
            if clamps:
                self.tensors[made.name] = made
                lowered, made = tabulate(nn.ReLU(), made, tensor)
                self.operations.append(lowered)
            tensor = made
        self._finish(node, tensor)

    def _lower_requantize(self, node: fx.Node, module: Requantize) -> None:
        source, bits = self.finished[node.all_input_nodes[0]], self._bits_of(module.group)
        if bits == self.max_bits:
            self.finished[node] = source
            return
        name = self._new_name(f"{own_name(node)}_input")
        tensor = quantized_tensor(name, module.source, bits, source.shape)
        operation, tensor = tabulate(nn.Identity(), source, tensor)
        self.operations.append(operation)
        self._finish(node, tensor)

    def _bits_of(self, group: PrecisionGroup) -> int:
        """Return the bits at which the activations of a group are frozen."""
        return self.max_bits if group == "fixed" else min(self.activation_bits, self.precision.max_bits_of(group))

    def _finish(self, node: fx.Node, tensor: QuantizedTensor) -> None:
        self.finished[node] = tensor
        self.tensors[tensor.name] = tensor

    def _new_name(self, name: str) -> str:
        """Return a name that neither a node nor a tensor has."""
        while name in self.names or name in self.tensors:
            name += "_"
        self.names.add(name)
        return name

    def _lower_operation(self, operation: FusedOperation, output: QuantizedTensor) -> tuple[Operation, QuantizedTensor]:
        kind, head, module = operation.kind, operation.head, self._module(operation.head)
        sources = [self.finished[source] for source in head.all_input_nodes if source in self.finished]
        names = tuple(source.name for source in sources)
        if kind is Kind.TABLE and (output.signed or not isinstance(module, nn.Hardsigmoid)):
            assert module is not None
            return tabulate(module, sources[0], output)
        if kind is Kind.LAYER:
            return self._lower_layer(head, operation.norm, sources[0], output), output
        if kind in (Kind.NORM, Kind.CONSTANT, Kind.AVERAGE, Kind.TABLE):
            return self._last_of(
                lower_channelwise(module, str(head.target), (sources[0], output), self._new_name)
            ), output
        if kind is Kind.CONCATENATE:
            axis = int(head.kwargs.get("dim", head.args[1] if len(head.args) > 1 else 0))  # type: ignore[arg-type]
            order = tuple(self.finished[source].name for source in head.args[0])  # type: ignore[union-attr,index]
            return Concatenate(order, output.name, axis % (len(output.shape) + 1)), output
        if kind in (Kind.ADD, Kind.MULTIPLY):
            pair = names if len(names) == 2 else (names[0], names[0])
            return (Add if kind is Kind.ADD else Multiply)(pair, output.name), output
        assert kind is Kind.GLOBAL_AVERAGE, kind
        return self._lower_global_average(names, output), output

    # --- operations -----------------------------------------------------------------------------------------------

    def _lower_layer(
        self,
        node: fx.Node,
        norm: Norm | None,
        source: QuantizedTensor,
        output: QuantizedTensor | None,
    ) -> Operation:
        layer = self._module(node)
        assert isinstance(layer, QuantizedLayer)
        bits = self.layer_bits[str(node.target)]
        folded = fold_layer(layer, norm, bits, source.scale, bias_limit(source))
        if isinstance(layer, QuantizedConvTranspose1d | QuantizedConvTranspose2d):
            assert output is not None
            return self._last_of(transposed_convolution(layer, folded, bits, (source, output, str(node.target))))
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

    def _lower_recurrent(self, node: fx.Node, layer: QuantizedRecurrent) -> None:
        x, *state = node.args  # h and c may be the same node
        assert isinstance(x, fx.Node)
        source, name, path = self.finished[x], self.floats.real_name(node), str(node.target)
        shape = (x.meta["shape"][1], layer.hidden_size)
        hidden = quantized_tensor(
            self._new_name(f"{name}_hidden"), layer.hidden_quantizer, self._bits_of(layer.group), shape
        )
        bits = self.layer_bits[f"{path}.input_layer"], self.layer_bits[f"{path}.hidden_layer"]
        before = tuple(self.floats.name_of(part) for part in state if isinstance(part, fx.Node))
        self.operations += lower_recurrent(layer, path, bits, (source, hidden), before, name)
        self.tensors[hidden.name] = hidden
        self.floats.names[node] = name

    def _lower_global_average(self, names: tuple[str, ...], output: QuantizedTensor) -> Operation:
        if len(output.shape) == 3:
            return GlobalAverage(names, output.name)
        # `x.mean([2, 3])` drops the spatial dimensions; the pooled tensor keeps them and is flattened.
        pooled = replace(output, name=self._new_name(f"{output.name}_pooled"), shape=(*output.shape, 1, 1))
        self.tensors[pooled.name] = pooled
        self.operations.append(GlobalAverage(names, pooled.name))
        return reshape(pooled, output)

    def _last_of(self, lowered: Lowered) -> Operation:
        """Add all operations except the last, and return the last."""
        *before, (last, _) = lowered
        self.operations.extend(operation for operation, _ in before)
        self.tensors.update({tensor.name: tensor for _, tensor in before})
        return last

    # --- movements --------------------------------------------------------------------------------------------------

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
