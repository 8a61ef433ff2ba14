"""Measure the values of tensors over samples, one sample in memory at a time: ranges for quantizing, and means."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.running import Measured, Runner, Sample
from cpt_deploy.quantization.folding import Floats

#: Values of a tensor that are kept of each sample, and of all samples, to search its range.
PER_SAMPLE, KEPT = 4096, 2**16
#: Tried ranges: each end, as a share of the least or greatest value.
SHARES = np.linspace(1.0, 0.3, 36)
#: ReduceMean takes its axes as an input from this opset on.
_AXES_AS_INPUT = 18

_LOW, _HIGH, _VALUES, _MEANS = "cpt_low:", "cpt_high:", "cpt_values:", "cpt_means:"


@dataclass(frozen=True)
class Ranges:
    """What was seen of tensors over samples.

    Attributes:
        bounds: Range of each tensor to be quantized; 0 belongs to each.
        means: Mean of each channel of the tensors that layers read, by tensor and axis of the channels.
        samples: Number of samples.
    """

    bounds: Mapping[str, tuple[float, float]]
    means: Mapping[tuple[str, int], Floats]
    samples: int


def measure_ranges(
    network: OnnxNetwork,
    measured: Mapping[str, Measured],
    quant_max: Mapping[str, int],
    channels: Iterable[tuple[str, int]],
    samples: Iterable[Sample],
    *,
    factors: Mapping[str, Floats],
) -> Ranges:
    """Measure tensors over samples.

    A range is that of all values, or a smaller one if quantizing then has a smaller squared error.

    Args:
        network: The network.
        measured: Its tensors, as seen in a run.
        quant_max: Tensors to be quantized, with the greatest quantized value of each.
        channels: Tensors whose channels' means are wanted, each with an axis of channels.
        samples: The samples; one at a time is in memory.
        factors: Factors (C,) by which the channels of tensors are divided before.

    Raises:
        ConversionError: If a tensor has values that are not finite.
        UsageError: If there are no samples.
    """
    names = [*quant_max]
    seen = {name: _Seen() for name in names}
    channels = tuple(dict.fromkeys(channels))
    means: dict[tuple[str, int], Floats] = {}
    runner, outputs = _probed(network, measured, names, channels, factors)
    count = 0
    for sample in samples:
        results = runner.run(sample, outputs)
        for name, values in seen.items():
            low, high, some = float(results[_LOW + name]), float(results[_HIGH + name]), results[_VALUES + name]
            others = [results[_mean_of(tensor, axis)] for tensor, axis in channels if tensor == name]
            _check_finite(name, low, high, [some, *others])
            values.add(low, high, some, count)
        for place in channels:
            means[place] = means.get(place, 0.0) + np.nan_to_num(results[_mean_of(*place)].astype(np.float64))
        count += 1
    if not count:
        raise UsageError("Expected at least one sample to calibrate on, but got none")
    bounds = {name: values.range(quant_max[name]) for name, values in seen.items()}
    return Ranges(bounds, {place: total / count for place, total in means.items()}, count)


def _mean_of(name: str, axis: int) -> str:
    return f"{_MEANS}{axis}:{name}"


def _check_finite(name: str, low: float, high: float, others: Sequence[NDArray[Any]]) -> None:
    """Check the values of a tensor: its ends, and others for NaN, which onnxruntime leaves out of minima and maxima.

    Raises:
        ConversionError: If some are infinite or NaN.
    """
    if low <= high and any(np.isnan(array).any() for array in others):  # without elements means are NaN, too
        low = high = np.nan
    if np.isnan(low + high) or (low <= high and not np.isfinite(low + high)):
        raise ConversionError(
            f"Expected finite values of {name!r}, but got {low} to {high}",
            hint="samples with NaN or infinity give such values: leave them out, or replace the values",
        )


@dataclass
class _Seen:
    """The values of a tensor."""

    low: float = 0.0
    high: float = 0.0
    values: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, low: float, high: float, values: NDArray[np.float32], number: int) -> None:
        """Add a sample; of many, the values of some are kept, chosen by their number."""
        if low > high:
            return  # it has no elements
        self.low, self.high = min(self.low, low), max(self.high, high)
        if len(self.values) * PER_SAMPLE < KEPT:
            self.values.append(values)
        elif (place := int(np.random.default_rng(number).integers(number + 1))) < len(self.values):
            self.values[place] = values

    def range(self, quant_max: int) -> tuple[float, float]:
        """Return the range with the smallest squared error, of all values or smaller ones."""
        if not self.values or self.low == self.high:
            return self.low, self.high
        values = np.concatenate(self.values).astype(np.float32)
        low, high = self.low, self.high
        for _ in range(2):
            high = min((self.high * share for share in SHARES), key=lambda end: _error(values, low, end, quant_max))
            low = min((self.low * share for share in SHARES), key=lambda end: _error(values, end, high, quant_max))
        return low, high


def _error(values: NDArray[np.float32], low: float, high: float, quant_max: int) -> float:
    """Return the sum of squared errors of quantizing in a range."""
    scale = np.float32((high - low) / quant_max)
    if not scale > 0:
        return np.inf
    zero_point = np.rint(np.float32(-low) / scale)
    difference = np.clip(np.rint(values / scale), -zero_point, quant_max - zero_point) * scale - values
    return float(np.square(difference, dtype=np.float64).sum())  # squares of large activations leave float32


def _stride(size: int) -> int:
    """Return a step for about `PER_SAMPLE` of so many values that meets all places of each axis."""
    step = size // PER_SAMPLE | 1
    while size and math.gcd(step, size) > 1:
        step += 2
    return step


def _probed(
    network: OnnxNetwork,
    measured: Mapping[str, Measured],
    names: Sequence[str],
    channels: Sequence[tuple[str, int]],
    factors: Mapping[str, Floats],
) -> tuple[Runner, list[str]]:
    """Return the network with small outputs: ends, some values and channel means of tensors."""
    probes: list[onnx.NodeProto] = []
    divisors: dict[str, NDArray[np.float32]] = {}
    divided = {name: f"cpt_divided:{name}" for name in factors}
    for name, factor in factors.items():
        divisors[f"cpt_factors:{name}"] = factor.astype(np.float32).reshape(-1, *[1] * (len(measured[name].shape) - 2))
        probes.append(helper.make_node("Div", [name, f"cpt_factors:{name}"], [divided[name]]))
    constants: dict[str, NDArray[Any]] = {
        "cpt_flat": np.array([-1]), "cpt_start": np.array([0]), "cpt_end": np.array([2**62]), "cpt_axis": np.array([0])
    }  # fmt: skip
    for name in names:
        source = divided.get(name, name)
        probes.append(helper.make_node("ReduceMin", [source], [_LOW + name], keepdims=0))
        probes.append(helper.make_node("ReduceMax", [source], [_HIGH + name], keepdims=0))
        step = _stride(math.prod(measured[name].shape))
        constants[f"cpt_step_{step}"] = np.array([step])
        flat = f"cpt_flat:{name}"
        probes.append(helper.make_node("Reshape", [source, "cpt_flat"], [flat]))
        inputs = [flat, "cpt_start", "cpt_end", "cpt_axis", f"cpt_step_{step}"]
        probes.append(helper.make_node("Slice", inputs, [_VALUES + name]))
    for name, axis in channels:
        axes = [place for place in range(len(measured[name].shape)) if place != axis]
        source = divided.get(name, name)
        if network.opsets[""] < _AXES_AS_INPUT:
            probes.append(helper.make_node("ReduceMean", [source], [_mean_of(name, axis)], axes=axes, keepdims=0))
        else:
            constants[f"cpt_axes_{axes}"] = np.array(axes)
            inputs = [source, f"cpt_axes_{axes}"]
            probes.append(helper.make_node("ReduceMean", inputs, [_mean_of(name, axis)], keepdims=0))
    outputs = [_LOW + name for name in names] + [_HIGH + name for name in names]
    outputs += [_VALUES + name for name in names] + [_mean_of(*place) for place in channels]
    model = network.to_model(probes, outputs)
    model.graph.initializer.extend(numpy_helper.from_array(x.astype(np.int64), key) for key, x in constants.items())
    model.graph.initializer.extend(numpy_helper.from_array(x, key) for key, x in divisors.items())
    return Runner(model, network), outputs
