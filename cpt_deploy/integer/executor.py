"""Execute an integer graph in PyTorch with the arithmetic of onnxruntime's integer kernels, bit for bit.

Integers are stored in float32. A float32 convolution of integers is exact while every partial sum stays below 2^24; a
layer that could exceed it is computed in float64.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.integer import arithmetic
from cpt_deploy.integer import operations as ops
from cpt_deploy.integer.float_calls import call, float_constants
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.onnx_parts import OnnxSessions
from cpt_deploy.integer.products import Layer, RecurrentSteps, Steps, fits_float32
from cpt_deploy.integer.tensors import QuantizedTensor

Inputs = Tensor | Mapping[str, Tensor]
"""The inputs of a graph by name, or its only input."""


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
        for i, operation in enumerate(o for o in graph.operations if isinstance(o, ops.Lookup)):
            self.register_buffer(f"_table_{i}", torch.from_numpy(operation.table.copy()))
            self._index[operation.output] = i
        for i, read in enumerate(o for o in graph.operations if isinstance(o, ops.ReadPixels)):
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
    def trace(
        self, inputs: Inputs, given: Mapping[str, Tensor] | None = None, own: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the quantized values of every tensor of the graph, uint8 or int8, by name, in the order of execution.

        Args:
            inputs: The inputs by name, or the only one.
            given: Quantized values of tensors that are quantized from real values, by name, to replace the executor's
                own: with those of another runtime, all other integers have to be equal in both.
            own: Receives the executor's own values of the given tensors, as `entries` returns them.

        Returns:
            The quantized values; and the real values of layers whose output is not quantized, and of the outputs.
        """
        products = {o.output for o in self.graph.operations if isinstance(o, ops.FullyConnected | ops.Embed)}
        products |= {o.product for o in self.graph.operations if isinstance(o, ops.Recurrent)}
        signed = {name for name, tensor in self.graph.tensors.items() if tensor.signed}
        return {
            name: codes.to(torch.int8 if name in signed else torch.uint8) if name in self.graph.tensors else codes
            for name, codes in self._run(self._named(inputs), keep=True, given=given or {}, own=own).items()
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
            if isinstance(operation, ops.Recurrent):
                values.update(self._run_steps(operation, [self._real(n, values) for n in operation.inputs], given, own))
            elif given and isinstance(operation, ops.Quantize) and operation.output in given:
                if own is not None:
                    own[operation.output] = self._execute(operation, [values[name] for name in operation.inputs])
                values[operation.output] = given[operation.output].to(torch.float32)
            elif isinstance(operation, ops.OnnxPart):
                values.update(zip(operation.results, self._execute_part(operation, values), strict=True))
            else:
                values[operation.output] = self._execute(operation, [values[name] for name in operation.inputs])
            if not keep:
                for name in {*operation.inputs, *_extras(operation)}:
                    if last_use.get(name, i) == i and name not in self.graph.outputs:
                        del values[name]
        return values

    def _execute_part(self, operation: ops.OnnxPart, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return all results of ONNX operators, which read real values, or quantized ones for their shape only."""
        inputs = [
            self._stored(name, values[name]) if i in operation.codes else self._real(name, values)
            for i, name in enumerate(operation.inputs)
        ]
        return self._onnx.run(operation.output, inputs)

    def _stored(self, name: str, x: Tensor) -> Tensor:
        """Return quantized values in the type that the ONNX file has them in; other tensors as they are."""
        tensor = self.graph.tensors.get(name)
        return x if tensor is None else x.to(torch.int8 if tensor.signed else torch.uint8)

    def _run_steps(
        self,
        operation: ops.Recurrent,
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

    def _execute(self, operation: ops.Operation, inputs: list[Tensor]) -> Tensor:  # noqa: PLR0911
        if isinstance(operation, ops.Constant | ops.Float | ops.Embed | ops.Quantize):
            return self._execute_real(operation, inputs)
        if isinstance(operation, ops.Movement):
            stored = [self._stored(name, x) for name, x in zip(operation.inputs, inputs, strict=True)]
            return self._onnx.run(operation.output, stored)[0].to(torch.float32)
        if isinstance(operation, ops.ReadPixels):
            return arithmetic.read_pixels(
                inputs[0], self.get_buffer(f"_pixels_{self._index[operation.output]}"), operation
            )
        x, sources = inputs[0], [self.graph.tensors[name] for name in operation.inputs]
        if operation.output not in self.graph.tensors:
            product: Tensor = self._layers[self._index[operation.output]](x)
            return product
        output = self.graph.tensors[operation.output]
        match operation:
            case ops.Convolution() | ops.FullyConnected():
                result: Tensor = self._layers[self._index[operation.output]](x)
                return result
            case ops.Add():
                return arithmetic.add(inputs, sources, output)
            case ops.Multiply():
                return arithmetic.multiply(inputs, sources, output)
            case ops.GlobalAverage():
                return arithmetic.global_average(x, sources[0], output)
            case ops.Concatenate():
                parts = [arithmetic.rescale(part, source, output) for part, source in zip(inputs, sources, strict=True)]
                return torch.cat(parts, dim=operation.axis)
            case ops.Reinterpret():
                return x.clamp(operation.low, operation.high)
            case ops.Lookup():
                table = self.get_buffer(f"_table_{self._index[operation.output]}").to(x.device)
                return table[(x - sources[0].quant_min).to(torch.int64)].to(torch.float32)
        return _moved(operation, x, sources[0], output)

    def _execute_real(self, operation: ops.Operation, inputs: list[Tensor]) -> Tensor:
        tensors = [self.graph.tensors.get(name) for name in operation.inputs]
        values = [v if t is None else arithmetic.dequantize(v, t) for v, t in zip(inputs, tensors, strict=True)]
        match operation:
            case ops.Constant():
                return self.get_buffer(f"_constant_{self._index[operation.output]}")
            case ops.Float():
                result: Tensor = call(operation, values)
                return result
            case ops.Embed():
                codes, scales = (
                    self.get_buffer(f"_constant_{self._index[f'{operation.output}.{part}']}")
                    for part in ("codes", "scales")
                )
                return codes[values[0]].to(torch.float32) * scales[values[0]].unsqueeze(-1)
        return arithmetic.quantize(values[0], self.graph.tensors[operation.output])


def _extras(operation: ops.Operation) -> tuple[str, ...]:
    """Return the names of results that no operation reads."""
    return (operation.hidden, operation.product) if isinstance(operation, ops.Recurrent) else ()


def _executed(operation: ops.WeightedOperation, graph: IntegerGraph) -> nn.Module:
    if isinstance(operation, ops.Recurrent):
        source = graph.multiplied(operation)
        dtype = torch.float32 if fits_float32(operation, source) else torch.float64
        return RecurrentSteps(operation, source, dtype)
    return Layer(operation, graph)


def _moved(operation: ops.Operation, x: Tensor, source: QuantizedTensor, output: QuantizedTensor) -> Tensor:
    match operation:
        case ops.MaxPool():
            return arithmetic.max_pool(x, operation)
        case ops.Pad():
            return arithmetic.pad(x, operation, source.zero_point)
        case ops.Reshape():
            free = [x.shape[axis] if size == 0 else size for axis, size in enumerate(operation.sizes)]
            return x.reshape(free or (x.shape[0], *output.shape))  # type: ignore[arg-type]
        case ops.Transpose():
            return x.permute(operation.permutation)
        case ops.Slice():
            return x[(*[slice(None)] * operation.axis, slice(operation.start, operation.end))]
    raise AssertionError(f"unknown operation {type(operation).__name__}")
