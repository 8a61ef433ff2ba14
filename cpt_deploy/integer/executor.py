"""Execute an integer graph in PyTorch with the arithmetic of onnxruntime's integer kernels, bit for bit.

Integers are stored in float32. A float32 convolution of integers is exact while every partial sum stays below 2^24; a
layer that could exceed it is computed in float64.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.errors import UsageError
from cpt_deploy.integer import arithmetic
from cpt_deploy.integer.float_calls import call, float_constants
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.onnx_parts import OnnxSessions
from cpt_deploy.integer.operations import (
    Add,
    Concatenate,
    Constant,
    Convolution,
    Embed,
    Float,
    FullyConnected,
    GlobalAverage,
    Lookup,
    MaxPool,
    Movement,
    Multiply,
    OnnxPart,
    Operation,
    Pad,
    Quantize,
    QuantizedTensor,
    ReadPixels,
    Recurrent,
    Reshape,
    Slice,
    Transpose,
    WeightedOperation,
    adds_real_bias,
)
from cpt_deploy.integer.recurrent import RecurrentSteps, Steps

Inputs = Tensor | Mapping[str, Tensor]
"""The inputs of a graph by name, or its only input."""

#: float32 represents all integers up to this magnitude.
EXACT_FLOAT32 = 2**24


def fits_float32(operation: WeightedOperation, source: QuantizedTensor) -> bool:
    """Return whether float32 represents every partial sum of a layer exactly."""
    reach = max(source.zero_point - source.least, source.quant_max - source.zero_point)
    sums = np.abs(operation.executed_codes.astype(np.int64)).reshape(len(operation.codes), -1).sum(axis=1)
    worst = sums * reach + np.abs(operation.bias.astype(np.int64))
    return bool(worst.max(initial=0) < EXACT_FLOAT32)


class IntegerExecutor(nn.Module):
    """Runs a frozen graph.

    The module can be traced and exported: its weights are int8 buffers, its biases int32, and the control flow of
    `forward` depends neither on the values nor on the batch size.

    Args:
        graph: A frozen graph, see `freeze`.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__()
        self.graph = graph
        products = graph.products()
        self._layers = nn.ModuleList(_executed(operation, graph) for operation in products)
        self._index = {operation.output: i for i, operation in enumerate(products)}
        for i, (key, values) in enumerate(float_constants(graph).items()):
            self.register_buffer(f"_constant_{i}", values)
            self._index[key] = i
        for i, operation in enumerate(o for o in graph.operations if isinstance(o, Lookup)):
            self.register_buffer(f"_table_{i}", torch.from_numpy(operation.table.copy()))
            self._index[operation.output] = i
        for i, read in enumerate(o for o in graph.operations if isinstance(o, ReadPixels)):
            self.register_buffer(f"_pixels_{i}", torch.from_numpy(read.table.copy()))
            self._index[read.output] = i
        self._onnx = OnnxSessions(graph)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs: one tensor, or a tuple of several. Inputs are in the order of the graph's signature."""
        values = self._run(dict(zip((tensor.name for tensor in self.graph.signature.inputs), inputs, strict=True)))
        results = tuple(self._real(name, values) for name in self.graph.outputs)
        return results[0] if len(results) == 1 else results

    def run(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the outputs by name, float32, for inputs by name (or the only one)."""
        values = self._run(self._named(inputs))
        names = (tensor.name for tensor in self.graph.signature.outputs)
        return {name: self._real(made, values) for name, made in zip(names, self.graph.outputs, strict=True)}

    def _real(self, name: str, values: Mapping[str, Any]) -> Tensor:
        tensor, value = self.graph.tensors.get(name), values[name]
        assert isinstance(value, Tensor)
        return value if tensor is None else arithmetic.dequantize(value, tensor)

    def _named(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Return the inputs by name.

        Raises:
            UsageError: If the names are not those of the graph.
        """
        names = [tensor.name for tensor in self.graph.signature.inputs]
        given = {names[0]: inputs} if isinstance(inputs, Tensor) and len(names) == 1 else inputs
        if isinstance(given, Tensor) or given.keys() != {*names}:
            got = "one tensor" if isinstance(given, Tensor) else ", ".join(given)
            raise UsageError(f"Expected the inputs {', '.join(names)}, but got {got}")
        return given

    @torch.no_grad()
    def trace(self, inputs: Inputs, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the quantized values of every tensor of the graph, uint8 or int8, by name, in the order of execution.

        Args:
            inputs: The inputs by name, or the only one.
            given: Quantized values of tensors that are quantized from real values, by name, to replace the executor's
                own: with those of another runtime, all other integers have to be equal in both.

        Returns:
            The quantized values; and the real values of layers whose output is not quantized, and of the outputs.
        """
        products = {o.output for o in self.graph.operations if isinstance(o, FullyConnected | Embed)}
        products |= {o.product for o in self.graph.operations if isinstance(o, Recurrent)}
        signed = {name for name, tensor in self.graph.tensors.items() if tensor.signed}
        return {
            name: codes.to(torch.int8 if name in signed else torch.uint8) if name in self.graph.tensors else codes
            for name, codes in self._run(self._named(inputs), keep=True, given=given or {}).items()
            if name in self.graph.tensors or name in products or name in self.graph.outputs
        }

    @torch.no_grad()
    def entries(self, inputs: Inputs, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that are quantized from real values, each computed from the `given` ones before it.

        So a mismatch comes from the float operations directly before the tensor, not from earlier mismatches.
        """
        own: dict[str, Tensor] = {}
        self._run(self._named(inputs), given=given, own=own)
        return own

    def _run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        keep: bool = False,
        given: Mapping[str, Tensor] | None = None,
        own: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        values: dict[str, Any] = {name: x.detach() for name, x in inputs.items()}
        last_use = {name: i for i, operation in enumerate(self.graph.operations) for name in operation.inputs}
        for i, operation in enumerate(self.graph.operations):
            if isinstance(operation, Recurrent):
                values.update(self._run_steps(operation, [self._real(n, values) for n in operation.inputs], given, own))
            elif given and isinstance(operation, Quantize) and operation.output in given:
                if own is not None:
                    own[operation.output] = self._execute(operation, [values[name] for name in operation.inputs])
                values[operation.output] = given[operation.output].to(torch.float32)
            elif isinstance(operation, OnnxPart):
                results = self._onnx.run(operation.output, self._read_by(operation, values))
                values.update(zip(operation.results, results, strict=True))
            else:
                values[operation.output] = self._execute(operation, [values[name] for name in operation.inputs])
            if not keep:
                for name in {*operation.inputs, *_extras(operation)}:
                    if last_use.get(name, i) == i and name not in self.graph.outputs:
                        del values[name]
        return values

    def _read_by(self, operation: OnnxPart, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the inputs of ONNX operators: real values, or quantized ones where only their shape is read."""
        return [
            self._stored(name, values[name]) if i in operation.codes else self._real(name, values)
            for i, name in enumerate(operation.inputs)
        ]

    def _stored(self, name: str, x: Tensor) -> Tensor:
        """Return quantized values in the type that the ONNX file has them in; other tensors as they are."""
        tensor = self.graph.tensors.get(name)
        return x if tensor is None else x.to(torch.int8 if tensor.signed else torch.uint8)

    def _run_steps(
        self,
        operation: Recurrent,
        inputs: list[Tensor],
        given: Mapping[str, Tensor] | None,
        own: dict[str, Tensor] | None,
    ) -> dict[str, Any]:
        codes = (given or {}).get(operation.hidden)
        steps: Steps = self._layers[self._index[operation.output]](*inputs, given=codes)
        if own is not None and codes is not None:
            own[operation.hidden] = steps.hidden
        hidden = steps.hidden if codes is None else codes.to(torch.float32)
        return {operation.output: steps.result, operation.hidden: hidden, operation.product: steps.product}

    def _execute(self, operation: Operation, inputs: list[Tensor]) -> Tensor:  # noqa: PLR0911
        if isinstance(operation, Constant | Float | Embed | Quantize):
            return self._execute_real(operation, inputs)
        if isinstance(operation, Movement):
            stored = [self._stored(name, x) for name, x in zip(operation.inputs, inputs, strict=True)]
            return self._onnx.run(operation.output, stored)[0].to(torch.float32)
        if isinstance(operation, ReadPixels):
            return arithmetic.read_pixels(
                inputs[0], self.get_buffer(f"_pixels_{self._index[operation.output]}"), operation
            )
        x, sources = inputs[0], [self.graph.tensors[name] for name in operation.inputs]
        if operation.output not in self.graph.tensors:
            product: Tensor = self._layers[self._index[operation.output]](x)
            return product
        output = self.graph.tensors[operation.output]
        match operation:
            case Convolution() | FullyConnected():
                result: Tensor = self._layers[self._index[operation.output]](x)
                return result
            case Add():
                return arithmetic.add(inputs, sources, output)
            case Multiply():
                return arithmetic.multiply(inputs, sources, output)
            case GlobalAverage():
                return arithmetic.global_average(x, sources[0], output)
            case Concatenate():
                parts = [arithmetic.rescale(part, source, output) for part, source in zip(inputs, sources, strict=True)]
                return torch.cat(parts, dim=operation.axis)
            case Lookup():
                table = self.get_buffer(f"_table_{self._index[operation.output]}").to(x.device)
                return table[(x - sources[0].least).to(torch.int64)].to(torch.float32)
        return _moved(operation, x, sources[0], output)

    def _execute_real(self, operation: Operation, inputs: list[Tensor]) -> Tensor:
        tensors = [self.graph.tensors.get(name) for name in operation.inputs]
        values = [v if t is None else arithmetic.dequantize(v, t) for v, t in zip(inputs, tensors, strict=True)]
        match operation:
            case Constant():
                return self.get_buffer(f"_constant_{self._index[operation.output]}")
            case Float():
                result: Tensor = call(operation, values)
                return result
            case Embed():
                codes, scales = (
                    self.get_buffer(f"_constant_{self._index[f'{operation.output}.{part}']}")
                    for part in ("codes", "scales")
                )
                return codes[values[0]].to(torch.float32) * scales[values[0]].unsqueeze(-1)
        return arithmetic.quantize(values[0], self.graph.tensors[operation.output])


def _extras(operation: Operation) -> tuple[str, ...]:
    """Return the names of results that no operation reads."""
    return (operation.hidden, operation.product) if isinstance(operation, Recurrent) else ()


def _executed(operation: WeightedOperation, graph: IntegerGraph) -> nn.Module:
    if isinstance(operation, Recurrent):
        source = graph.multiplied(operation)
        dtype = torch.float32 if fits_float32(operation, source) else torch.float64
        return RecurrentSteps(operation, source, dtype)
    return _Layer(operation, graph)


def _moved(operation: Operation, x: Tensor, source: QuantizedTensor, output: QuantizedTensor) -> Tensor:
    match operation:
        case MaxPool():
            return arithmetic.max_pool(x, operation)
        case Pad():
            return arithmetic.pad(x, operation, source.zero_point)
        case Reshape():
            free = [x.shape[axis] if size == 0 else size for axis, size in enumerate(operation.sizes)]
            return x.reshape(free or (x.shape[0], *output.shape))  # type: ignore[arg-type]
        case Transpose():
            return x.permute(operation.permutation)
        case Slice():
            return x[(*[slice(None)] * operation.axis, slice(operation.start, operation.end))]
    raise AssertionError(f"unknown operation {type(operation).__name__}")


class _Layer(nn.Module):
    """A convolution or a fully connected layer on integers, (N, ...) → (N, ...), with int8 weights.

    `y = rint(clamp(f32(acc) · m)) + z_y` with `m = f32(f32(s_x·s_w) / s_y)`; acc is exact and includes the bias.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor

    def __init__(self, operation: WeightedOperation, graph: IntegerGraph) -> None:
        super().__init__()
        self.operation = operation
        self.source, self.output = graph.tensors[operation.inputs[0]], graph.tensors.get(operation.output)
        self.dtype = torch.float32 if fits_float32(operation, self.source) else torch.float64
        # f32(f32(s_x · s_w) / s_y), in this order; one per output channel, for all positions
        multiplier = np.float32(self.source.scale) * operation.scales
        if self.output is not None:
            multiplier = multiplier / np.float32(self.output.scale)
        per_channel = (-1, *([1] * (operation.codes.ndim - 2)))
        self.register_buffer("weight", torch.from_numpy(operation.executed_codes.copy()))
        self.register_buffer("bias", torch.from_numpy(operation.bias.astype(np.int32)))
        self.register_buffer("multiplier", torch.from_numpy(multiplier.astype(np.float32).reshape(per_channel)))

    def forward(self, x: Tensor) -> Tensor:
        dtype, weight, bias, multiplier = self.dtype, self.weight, self.bias, self.multiplier
        if x.device.type != "cpu":
            dtype = torch.float64  # other devices may use TF32 or Winograd convolutions, which are not exact
            weight, bias, multiplier = (tensor.to(x.device) for tensor in (weight, bias, multiplier))
        centred, weight, bias = (x - self.source.zero_point).to(dtype), weight.to(dtype), bias.to(dtype)
        if isinstance(self.operation, Convolution):
            accumulator = arithmetic.convolve(centred, weight, bias, self.operation)
        else:
            accumulator = functional.linear(centred, weight, bias)
        if self.output is None and not adds_real_bias(self.source):
            return accumulator.to(torch.float32) * multiplier
        if self.output is None:
            return (accumulator - bias).to(torch.float32) * multiplier + bias.to(torch.float32) * multiplier
        return arithmetic.requantize(accumulator, multiplier, self.output)
