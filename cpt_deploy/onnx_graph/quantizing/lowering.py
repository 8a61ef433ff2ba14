"""Build the integer graph of an ONNX network: integer operations, and parts that stay as they are."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from cpt_deploy.integer.convolutions import fields_of
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.lowering.channel_blocks import in_channel_blocks
from cpt_deploy.integer.lowering.lookup import tabulate
from cpt_deploy.integer.lowering.paddings import with_paddings_inside
from cpt_deploy.integer.lowering.subpixel import transposed_convolution
from cpt_deploy.integer.operations import (
    Add,
    Concatenate,
    Convolution,
    FullyConnected,
    GlobalAverage,
    Multiply,
    Operation,
    Pad,
    Quantize,
)
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.finding.choosing import Choice
from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.finding.stages import Stages, float_part
from cpt_deploy.onnx_graph.onnx_parts import read_names
from cpt_deploy.onnx_graph.quantizing.bits import Bits, layer_name
from cpt_deploy.onnx_graph.quantizing.movements import constant_pads, movement
from cpt_deploy.onnx_graph.quantizing.precision import BITS
from cpt_deploy.onnx_graph.quantizing.ranges import Ranges
from cpt_deploy.onnx_graph.quantizing.reinterpreting import Reinterpreter
from cpt_deploy.onnx_graph.quantizing.weights import quantized_layer
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, is_standard
from cpt_deploy.onnx_graph.reading.running import Measured
from cpt_deploy.quantization.folding import FoldedWeights, channelwise
from cpt_deploy.signature import Signature

_MODULES: Mapping[str, Any] = {
    "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh, "Softplus": nn.Softplus, "LeakyRelu": nn.LeakyReLU, "Elu": nn.ELU,
    "Relu": nn.ReLU, "Clip": nn.Hardtanh,
}  # fmt: skip


class Lowering:
    """Builds an integer graph.

    Args:
        network: The network.
        measured: Its tensors, as seen in a run.
        choice: What becomes integers.
        ranges: Ranges of the tensors that are quantized.
        bits: Bits of layers and tensors.
    """

    def __init__(
        self, network: OnnxNetwork, measured: Mapping[str, Measured], choice: Choice, ranges: Ranges, bits: Bits
    ) -> None:
        self.network, self.measured, self.choice = network, measured, choice
        self.ranges, self.bits = ranges, bits
        self.linear = Reinterpreter(network, choice, ranges.bounds, bits)
        self.operations: list[Operation] = []
        self.tensors: dict[str, QuantizedTensor] = {}
        #: The quantized tensor of each real tensor that is quantized.
        self.quantized: dict[str, QuantizedTensor] = {}
        self.taken = {name for node in network.nodes for name in (*node.output, *node.input)} | {*network.constants}

    def run(self, stages: Stages, signature: Signature) -> IntegerGraph:
        """Return the graph.

        Args:
            stages: Order of execution.
            signature: Inputs and outputs.
        """
        signed = self.bits.precision.symmetric
        self._quantize_entries({tensor.name for tensor in signature.inputs})
        wanted = [self._wanted_after(stages, at) for at in range(len(stages.floats))]
        for at, (nodes, operations) in enumerate(zip(stages.floats, stages.integers, strict=True)):
            names = {name: tensor.name for name, tensor in self.quantized.items() if name in self._made}
            part = float_part(self.network, nodes, wanted[at], self._value_of, names, signed=signed)
            if part is not None:
                self.operations.append(part)
                self._quantize_entries({*part.results})
            for operation in operations:
                self._lower(operation)
        outputs = tuple(
            self.quantized[value.name].name if value.name in self._made else value.name
            for value in self.network.outputs
        )
        graph = IntegerGraph(signature, outputs, tuple(self.operations), self.tensors)
        return in_channel_blocks(with_paddings_inside(graph))

    @property
    def _made(self) -> set[str]:
        """Real tensors that exist only as integers."""
        return {operation.output for operation in self.choice.operations} - self.choice.real

    def _wanted_after(self, stages: Stages, at: int) -> set[str]:
        """Return the tensors that are read outside of the float operators of a stage."""
        own = {*stages.floats[at]}
        inside = {node for operation in self.choice.operations for node in operation.nodes}
        wanted = {*self.network.output_names, *self.choice.entries}
        for i, node in enumerate(self.network.nodes):
            if i not in own or i in inside:
                wanted.update(read_names(node))
        return wanted

    def _value_of(self, name: str) -> onnx.ValueInfoProto:
        """Return type and shape of a tensor; sizes that may change are free."""
        seen, kind, known = self.measured.get(name), self.network.types.get(name), self.network.shape(name)
        if kind is not None and kind.WhichOneof("value") not in (None, "tensor_type"):
            return onnx.ValueInfoProto(name=name, type=kind)
        element = seen.element if seen is not None else 0 if kind is None else kind.tensor_type.elem_type
        shape = known if known is not None or seen is None else (None,) * len(seen.shape)
        return helper.make_tensor_value_info(name, element or TensorProto.FLOAT, shape)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _quantize_entries(self, made: set[str]) -> None:
        """Quantize those of the real tensors `made` that integer operations read."""
        for name in self.choice.entries:
            if name in made and name not in self.quantized:
                tensor = self._new_tensor(name)
                self.operations.append(Quantize((name,), tensor.name))
                self._finish(name, tensor)

    def _new_tensor(self, name: str) -> QuantizedTensor:
        scale, zero_point = self.linear.parameters.get(name) or self.bits.parameters(name, self.ranges.bounds[name])
        bits, signed = self.bits.tensors.get(name, BITS), self.bits.precision.symmetric
        return QuantizedTensor(self._new_name(name), scale, zero_point, bits, self._shape_of(name), signed)

    def _shape_of(self, name: str) -> tuple[int | None, ...]:
        rank, known = len(self.measured[name].shape), self.network.shape(name)
        return tuple(known[1:]) if known is not None and len(known) == rank else (None,) * (rank - 1)

    def _new_name(self, name: str) -> str:
        name = f"{name}_codes"
        while any(other == name or other.startswith(f"{name}.") for other in self.taken):
            name += "_"
        self.taken.add(name)
        return name

    def _finish(self, name: str, tensor: QuantizedTensor) -> None:
        self.quantized[name] = self.tensors[tensor.name] = tensor

    # --- operations ---------------------------------------------------------------------------------------------------

    def _lower(self, found: Found) -> None:
        sources = [self.quantized[name] for name in found.inputs]
        if found.kind == "movement":
            self._move(found, sources[0])
            return
        if found.output in self.choice.real:
            self.operations.append(self._connected(found, sources[0], found.output))
            self._quantize_entries({found.output})
            return
        output = self._new_tensor(found.output)
        # saturating at 0 implements a clamp, which signed values need an operation for
        clamps = found.clamped and output.signed
        whole = replace(output, name=self._new_name(f"{found.output}_unclamped")) if clamps else output
        made, whole = self._operation(found, sources, whole)
        self.operations.append(made)
        if clamps:
            self.tensors[whole.name] = whole
            made, whole = tabulate(nn.ReLU(), whole, replace(output, shape=whole.shape))
            self.operations.append(made)
        self._finish(found.output, whole)

    def _operation(
        self, found: Found, sources: list[QuantizedTensor], output: QuantizedTensor
    ) -> tuple[Operation, QuantizedTensor]:
        """Return an operation with its output tensor; others that it needs before it are added."""
        names = tuple(source.name for source in sources)
        made: Operation
        match found.kind:
            case "convolution" | "transposed":
                return self._convolution(found, sources[0], output)
            case "connected":
                made = self._connected(found, sources[0], output.name)
            case "channelwise" if (kept := self.linear.reinterpreted(found, sources[0], output)) is not None:
                made, output = kept
            case "channelwise" | "average":
                made = self._depthwise(found, sources[0], output)
            case "add":
                made = Add(names, output.name)
            case "multiply":
                made = Multiply(names, output.name)
            case "concatenate":
                assert found.attributes is not None
                rank = len(output.shape) + 1
                made = Concatenate(names, output.name, found.attributes["axis"] % rank)
            case "global_average":
                made = GlobalAverage(names, output.name)
            case _:
                made, output = self._tabulate(found, sources[0], output)
        return made, output

    def _folded(self, found: Found, source: QuantizedTensor) -> FoldedWeights:
        assert found.weight is not None
        assert found.factor is not None
        assert found.offset is not None
        name = found.inputs[0]
        # transposed convolutions add other weights in each position
        excess = 0.0 if found.kind == "transposed" else self.linear.excess.get(name, 0.0)
        sums = found.weight.reshape(len(found.weight), -1).sum(axis=1)
        return quantized_layer(
            found.weight, found.factor, found.offset - found.factor * sums * excess, source,
            bits=self._bits_of(found), means=self.ranges.means.get((name, found.channel_axis(len(source.shape) + 1))),
            portable=self.bits.precision.portable,
        )  # fmt: skip

    def _source_of(self, found: Found) -> str:
        return layer_name(self.network, found.nodes)

    def _bits_of(self, found: Found) -> int:
        return self.bits.layers[self._source_of(found)]

    def _connected(self, found: Found, source: QuantizedTensor, output: str) -> FullyConnected:
        fields = fields_of(self._folded(found, source))
        return FullyConnected(
            (source.name,), output, **fields, bits=self._bits_of(found), source=self._source_of(found),
            clamped_in_float=found.output in self.choice.real and self._is_clamped(found.output),
        )  # fmt: skip

    def _is_clamped(self, name: str) -> bool:
        readers = (self.network.nodes[reader] for reader in self.network.readers.get(name, ()))
        return any(is_standard(reader, "Relu", "Clip") for reader in readers)

    def _convolution(
        self, found: Found, source: QuantizedTensor, output: QuantizedTensor
    ) -> tuple[Operation, QuantizedTensor]:
        geometry, name = found.attributes, self._source_of(found)
        assert geometry is not None
        assert found.weight is not None
        folded = self._folded(found, source)
        output = replace(output, shape=(len(folded.codes), *output.shape[1:]))
        if found.kind == "transposed":
            layer: Any = SimpleNamespace(
                kernel_size=folded.codes.shape[2:], stride=geometry["strides"], padding=geometry["pads"],
                output_padding=geometry["output_padding"], dilation=geometry["dilations"], groups=geometry["groups"],
            )  # fmt: skip
            *before, last = transposed_convolution(layer, folded, self._bits_of(found), (source, output, name))
            for operation, tensor in before:
                self.operations.append(operation)
                self.tensors[tensor.name] = tensor
            return last
        strides, pads, dilations = (tuple(geometry[key]) for key in ("strides", "pads", "dilations"))
        convolution = Convolution(
            (source.name,), output.name, **fields_of(folded), bits=self._bits_of(found), source=name,
            strides=strides, pads=pads, dilations=dilations, groups=geometry["groups"],
        )  # fmt: skip
        return convolution, output

    def _depthwise(self, found: Found, source: QuantizedTensor, output: QuantizedTensor) -> Convolution:
        channels, dimensions = source.channels, len(source.shape) - 1
        kernel: tuple[int, ...] = (1,) * dimensions
        strides, pads = kernel, (0,) * 2 * dimensions
        if found.kind == "average":
            assert found.attributes is not None
            kernel = tuple(found.attributes["kernel_shape"])
            strides = tuple(found.attributes.get("strides", strides))
            pads = tuple(found.attributes.get("pads", pads))
            scales = np.full(channels, 1.0 / np.prod(kernel), dtype=np.float32)
            codes = np.ones((channels, 1, *kernel), dtype=np.int8)
            folded = FoldedWeights(codes, 0, scales, np.zeros(channels, dtype=np.int32))
        else:
            assert found.factor is not None
            assert found.offset is not None
            folded = channelwise(found.factor, found.offset, dimensions, source.scale)
        return Convolution(
            (source.name,), output.name, **fields_of(folded), bits=BITS, source=self._source_of(found),
            strides=strides, pads=pads, dilations=(1,) * dimensions, groups=channels,
        )  # fmt: skip

    def _tabulate(
        self, found: Found, source: QuantizedTensor, output: QuantizedTensor
    ) -> tuple[Operation, QuantizedTensor]:
        kind = self.network.nodes[found.nodes[0]].op_type
        return tabulate(_MODULES[kind](*found.parameters), source, output)

    def _move(self, found: Found, source: QuantizedTensor) -> None:
        node = self.network.nodes[found.nodes[0]]
        output = replace(source, name=self._new_name(found.output), shape=self._shape_of(found.output))
        pads = constant_pads(self.network, node) if node.op_type == "Pad" else None
        if pads is not None:
            self.operations.append(Pad((source.name,), output.name, "constant", pads))
        else:
            names = {name: tensor.name for name, tensor in self.quantized.items() if name in self._made}
            self.operations.append(movement(self.network, node, (source, output), self._value_of, names))
        self._finish(found.output, output)
