"""Executes an integer graph in PyTorch, in the arithmetic of onnxruntime's integer kernels: same codes, bit for bit.

Codes are carried in float32. A float32 convolution of integers is exact while every partial sum stays below 2^24;
where a layer could exceed that, float64 takes its place. Requantization follows the kernels' float32 operations in
their order; each function below states it.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.freezing.graph import (
    Add,
    Concatenate,
    Convolution,
    FullyConnected,
    GlobalAverage,
    IntegerGraph,
    Lookup,
    MaxPool,
    Multiply,
    Operation,
    QuantizedTensor,
    Reshape,
    Slice,
    Transpose,
    WeightedOperation,
)

#: float32 holds every integer up to here.
EXACT_FLOAT32 = 2**24


def fits_float32(operation: WeightedOperation, source: QuantizedTensor) -> bool:
    """Return whether no partial sum of a layer can leave the integers that float32 holds."""
    reach = max(source.zero_point, source.levels - source.zero_point)
    sums = np.abs(operation.executed_codes.astype(np.int64)).reshape(len(operation.codes), -1).sum(axis=1)
    worst = sums * reach + np.abs(operation.bias.astype(np.int64))
    return bool(worst.max(initial=0) < EXACT_FLOAT32)


class IntegerExecutor(nn.Module):
    """Runs a frozen graph.

    Args:
        graph: What `freeze` made.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__()
        self.graph = graph
        self._layers: dict[str, tuple[Tensor, Tensor, Tensor, torch.dtype]] = {}
        for operation in graph.weighted():
            self._layers[operation.output] = self._constants(operation)

    def _constants(self, operation: WeightedOperation) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
        source, output = self.graph.tensors[operation.inputs[0]], self.graph.tensors[operation.output]
        dtype = torch.float32 if fits_float32(operation, source) else torch.float64
        # f32(f32(s_x · s_w) / s_y), in this order
        multiplier = (np.float32(source.scale) * operation.scales) / np.float32(output.scale)
        return (
            torch.from_numpy(operation.executed_codes).to(dtype),
            torch.from_numpy(operation.bias.astype(np.int32)).to(dtype),
            torch.from_numpy(multiplier.astype(np.float32)),
            dtype,
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of normalised inputs: float32 (N, C, H, W) → float32 (N, classes)."""
        output = self.graph.tensors[self.graph.output]
        codes = self._run(x)[output.name]
        return (codes - output.zero_point) * torch.tensor(output.scale, dtype=torch.float32)

    @torch.no_grad()
    def trace(self, x: Tensor) -> dict[str, Tensor]:
        """Return the codes of every tensor of the graph, uint8, by name, in the order in which they are made."""
        return {name: codes.to(torch.uint8) for name, codes in self._run(x, keep=True).items()}

    def _run(self, x: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        source = self.graph.tensors[self.graph.input]
        # true division, as QuantizeLinear; x · (1 / s) would differ in one code of a million
        values = {source.name: _saturate(torch.round(x / torch.tensor(source.scale)) + source.zero_point, source)}
        last_use = {name: i for i, operation in enumerate(self.graph.operations) for name in operation.inputs}
        for i, operation in enumerate(self.graph.operations):
            values[operation.output] = self._execute(operation, [values[name] for name in operation.inputs])
            if not keep:
                for name in set(operation.inputs):
                    if last_use[name] == i and name != self.graph.output:
                        del values[name]
        return values

    def _execute(self, operation: Operation, inputs: list[Tensor]) -> Tensor:  # noqa: PLR0911
        sources = [self.graph.tensors[name] for name in operation.inputs]
        output = self.graph.tensors[operation.output]
        match operation:
            case Convolution() | FullyConnected():
                return self._weighted(operation, inputs[0], sources[0], output)
            case Add():
                return _add(inputs[0], inputs[1], sources[0], sources[1], output)
            case Multiply():
                return _multiply(inputs[0], inputs[1], sources[0], sources[1], output)
            case GlobalAverage():
                return _global_average(inputs[0], sources[0], output)
            case Concatenate():
                parts = [_rescale(x, source, output) for x, source in zip(inputs, sources, strict=True)]
                return torch.cat(parts, dim=operation.axis)
            case Lookup():
                table = torch.from_numpy(operation.table.astype(np.float32)).to(inputs[0].device)
                return table[inputs[0].to(torch.int64)]
            case MaxPool():
                return _max_pool(inputs[0], operation)
            case Reshape():
                return inputs[0].reshape(len(inputs[0]), *output.shape)
            case Transpose():
                return inputs[0].permute(operation.permutation)
            case Slice():
                return inputs[0].narrow(operation.axis, operation.start, operation.end - operation.start)
        raise AssertionError(f"unknown operation {type(operation).__name__}")

    def _weighted(
        self,
        operation: Convolution | FullyConnected,
        x: Tensor,
        source: QuantizedTensor,
        output: QuantizedTensor,
    ) -> Tensor:
        """`y = rint(clamp(f32(acc) · m)) + z_y` with `m = f32(f32(s_x·s_w) / s_y)`, acc with its bias exact."""
        weight, bias, multiplier, dtype = self._layers[operation.output]
        if x.device.type != "cpu":
            dtype = torch.float64  # other devices may convolve in TF32 or by Winograd, which are not exact
        weight, bias, multiplier = (t.to(x.device) for t in (weight.to(dtype), bias.to(dtype), multiplier))
        centred = (x - source.zero_point).to(dtype)
        if isinstance(operation, FullyConnected):
            accumulator = functional.linear(centred, weight, bias)
        else:
            accumulator = _convolve(centred, weight, bias, operation)
        per_channel = multiplier.view(-1, *([1] * (accumulator.dim() - 2)))
        return _requantize(accumulator.to(torch.float32) * per_channel, output)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, operation: Convolution) -> Tensor:
    dimensions = len(operation.strides)
    begins, ends = operation.pads[:dimensions], operation.pads[dimensions:]
    padding: tuple[int, ...] = begins
    if begins != ends:
        pairs = [p for begin, end in zip(reversed(begins), reversed(ends), strict=True) for p in (begin, end)]
        x, padding = functional.pad(x, pairs), (0,) * dimensions
    convolution = functional.conv2d if dimensions == 2 else functional.conv1d
    result: Tensor = convolution(x, weight, bias, operation.strides, padding, operation.dilations, operation.groups)
    return result


def _saturate(codes: Tensor, tensor: QuantizedTensor) -> Tensor:
    return codes.clamp_(0, tensor.levels)


def _requantize(scaled: Tensor, output: QuantizedTensor) -> Tensor:
    """Clamp in float, round half to even, add the zero point."""
    low, high = -output.zero_point, output.levels - output.zero_point
    return torch.round(scaled.clamp_(low, high)).add_(output.zero_point)


def _f32(value: float) -> np.float32:
    return np.float32(value)


def _fma(a: Tensor | np.float32, b: np.float32, c: Tensor | np.float32) -> Tensor:
    """`f32(a·b + c)` rounded once: the product of two float32 is exact in float64."""
    product = torch.as_tensor(a, dtype=torch.float64) * float(b)
    return (product + torch.as_tensor(c, dtype=torch.float64)).to(torch.float32)


def _add(a: Tensor, b: Tensor, qa: QuantizedTensor, qb: QuantizedTensor, qc: QuantizedTensor) -> Tensor:
    """`rint(fma(a, r_a, fma(b, r_b, f32(z_c − fma(z_a, r_a, f32(r_b·z_b))))))`, r = s / s_c."""
    ratio_a, ratio_b = _f32(qa.scale) / _f32(qc.scale), _f32(qb.scale) / _f32(qc.scale)
    shift = _fma(_f32(qa.zero_point), ratio_a, ratio_b * _f32(qb.zero_point))
    fixed = (torch.tensor(float(qc.zero_point), dtype=torch.float32) - shift).to(a.device)
    total = _fma(a, ratio_a, _fma(b, ratio_b, fixed))
    return _saturate(torch.round(total), qc)


def _multiply(a: Tensor, b: Tensor, qa: QuantizedTensor, qb: QuantizedTensor, qc: QuantizedTensor) -> Tensor:
    """`rint(f32(f32((a − z_a)·(b − z_b)·m) + z_c))`, `m = f32(f32(s_a·s_b) / s_c)`; the product of codes is exact.

    The zero point is added before rounding, which decides ties.
    """
    product = (a - qa.zero_point) * (b - qb.zero_point)
    multiplier = float((_f32(qa.scale) * _f32(qb.scale)) / _f32(qc.scale))
    scaled = product * torch.tensor(multiplier, dtype=torch.float32)
    return _saturate(torch.round(scaled.add_(qc.zero_point)), qc)


def _global_average(x: Tensor, source: QuantizedTensor, output: QuantizedTensor) -> Tensor:
    """`rint(acc · f32(s_x / f32(s_y·S))) + z_y` with `acc = Σx − S·z_x` over S positions."""
    positions = x.shape[2:].numel()
    accumulator = x.to(torch.float64).sum(dim=(2, 3), keepdim=True) - positions * source.zero_point
    multiplier = float(_f32(source.scale) / (_f32(output.scale) * _f32(positions)))
    return _requantize(accumulator.to(torch.float32) * torch.tensor(multiplier, dtype=torch.float32), output)


def _rescale(x: Tensor, source: QuantizedTensor, output: QuantizedTensor) -> Tensor:
    """Bring codes to another scale as a table of 256 entries does: dequantize and quantize, in float32."""
    if (source.scale, source.zero_point, source.levels) == (output.scale, output.zero_point, output.levels):
        return x
    real = (x - source.zero_point) * torch.tensor(source.scale)
    return _saturate(torch.round(real / torch.tensor(output.scale)) + output.zero_point, output)


def _max_pool(x: Tensor, operation: MaxPool) -> Tensor:
    dimensions = len(operation.kernel)
    pool = functional.max_pool2d if dimensions == 2 else functional.max_pool1d
    padding = operation.pads[:dimensions]
    result: Tensor = pool(
        x, operation.kernel, operation.strides, padding, operation.dilations, ceil_mode=operation.ceil
    )
    return result
