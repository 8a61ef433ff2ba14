"""The interface of kernel backends; each of its functions is one or two passes over memory and nothing else."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class QuantizationParameters(NamedTuple):
    """Quantization parameters: real value = (q − zero_point) · scale with q in [0, quant_max]; 0-dim float32 each."""

    scale: Tensor
    zero_point: Tensor
    quant_max: Tensor


class Clamp(NamedTuple):
    """Bounds to which values are clamped; infinite bounds have no effect."""

    low: float = -float("inf")
    high: float = float("inf")


class Average(NamedTuple):
    """A moving average of ranges, updated in place.

    Args:
        low: 0-dim float32.
        high: 0-dim float32.
        batches: Number of averaged ranges, 0-dim int64.
        momentum: Min weight of a new range; before it is reached, all ranges have equal weight.
    """

    low: Tensor
    high: Tensor
    batches: Tensor
    momentum: float


class QuantMax(NamedTuple):
    """The max quantized values for which to compute quantization parameters of a range.

    Args:
        own: Max quantized value of the tensor itself, 0-dim float32.
        scheduled: Max quantized value of layers of scheduled precision that read the tensor, 0-dim float32.
        own_min: Lower limit of `own`.
        symmetric: Whether quantization is signed and symmetric.
    """

    own: Tensor
    scheduled: Tensor
    own_min: float
    symmetric: bool


class Observed(NamedTuple):
    """A range that includes 0, with its quantization parameters.

    Args:
        low: 0-dim float32.
        high: 0-dim float32.
        own: Parameters of the tensor itself.
        scheduled: Parameters of layers of scheduled precision that read it.
    """

    low: Tensor
    high: Tensor
    own: QuantizationParameters
    scheduled: QuantizationParameters


class Statistics(NamedTuple):
    """Statistics per channel of a tensor, (C,) float32: mean, biased variance (divided by the count), min and max."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor


class BatchNorm(NamedTuple):
    """A BatchNorm in training; its running averages are updated in place.

    Args:
        weight: γ, (C,) float32.
        bias: β, (C,) float32.
        running_mean: (C,) float32.
        running_variance: (C,) float32.
        batches: 0-dim int64.
        momentum: Weight of a new batch.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_variance: Tensor
    batches: Tensor
    momentum: float
    eps: float


class AccumulatorScale(NamedTuple):
    """The real value of one unit of a layer's integer sums (accumulators): input · weight.

    Args:
        input: Scale of the input, 0-dim float32.
        weight: Scales of the weight, (C,) float32.
    """

    input: Tensor
    weight: Tensor


class Normalised(NamedTuple):
    """A layer's normalised output as `sums · factor + offset`; (C,) float32 each.

    Args:
        factor: Real value of one unit of the sums after normalisation.
        offset: Real value added after it.
        mean: Mean of the sums.
        gain: BatchNorm's factor γ/σ of the layer's real output; 1 without BatchNorm.
        deviation: One unit of the sums in standard deviations of the layer's real output; 0 without BatchNorm.
    """

    factor: Tensor
    offset: Tensor
    mean: Tensor
    gain: Tensor
    deviation: Tensor


class OutputGradient(NamedTuple):
    """The gradient of `clamp(x · factor + offset)`, a layer's normalised and clamped output, with its operands.

    Args:
        gradient: float32 or bfloat16, shape and memory order of `x`.
        x: The layer's integer sums, float32.
        factor: (C,) float32.
        offset: (C,) float32.
        clamp: The gradient passes where the clamp does not change the value, and is 0 elsewhere.
    """

    gradient: Tensor
    x: Tensor
    factor: Tensor
    offset: Tensor
    clamp: Clamp


class GradientTerms(NamedTuple):
    """Coefficients of the gradient of a layer's output: passed gradient · p + x · q + r; (C,) float32 each.

    See `terms` in kernels/parameters.py for the derivation.
    """

    p: Tensor
    q: Tensor
    r: Tensor


Both = tuple[QuantizationParameters, QuantizationParameters]
"""Quantization parameters of the two operands of a sum."""


class Kernels(Protocol):
    """The functions of a backend.

    Quantized values are uint8. Tensors with channels are (N, C, H, W) in channels-last memory, or (..., C). Ranges are
    float32 tensors (low, high), 0-dim, or (parts,), to be reduced by min and max; NaN if a value is NaN. Values that
    change from step to step are on the device: a seed is a 0-dim int64 tensor, of which the low 32 bits are used.
    Except for sums, averages and values normalised by them, results are equal in all backends, bit for bit.

    Raises:
        ValueError: If the result is undefined for an empty tensor (ranges, statistics, scales) and the tensor is empty.
        MemoryError: If a compiled function cannot allocate its temporary memory.
    """

    @property
    def name(self) -> str:
        """Name of the backend in `cpt info`."""

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return min and max of a float32 tensor."""

    def observe(self, low: Tensor, high: Tensor, average: Average | None, quant_max: QuantMax) -> Observed:
        """Extend a range to include 0, update the moving average, if any, and return it with its parameters."""

    def quantize(self, x: Tensor, qparams: QuantizationParameters) -> Tensor:
        """Return the quantized values of a float32 tensor: rint(x / scale) + zero_point, saturated."""

    def requantize(self, codes: Tensor, source: QuantizationParameters, target: QuantizationParameters) -> Tensor:
        """Return quantized values requantized from one set of parameters to another."""

    def centre(self, codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `codes − zero_point` as float32 or bfloat16, which holds these integers exactly."""

    def dequantize(self, codes: Tensor, qparams: QuantizationParameters) -> Tensor:
        """Return the float32 values of quantized values."""

    def quantize_weight(self, weight: Tensor, quant_max: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantized values (int8) and scales (O,) of a float32 weight (O, ...); `quant_max` is 0-dim or (O,)."""

    def real_weight(self, codes: Tensor, scales: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `codes · (scales · step)` in a float type; codes int8 (O, ...), scales (O,), step 0-dim."""

    def add_range(self, a: Tensor, b: Tensor, qparams_each: Both, clamp: Clamp) -> tuple[Tensor, Tensor]:
        """Return the range of the clamped sum of two quantized tensors."""

    def add_quantize(
        self, a: Tensor, b: Tensor, qparams_each: Both, clamp: Clamp, qparams: QuantizationParameters
    ) -> tuple[Tensor, Tensor]:
        """Return the quantized clamped sum, and a bit per element in memory order: 1 if the clamp did not change it."""

    def mask(self, gradient: Tensor, passed: Tensor) -> Tensor:
        """Return a gradient, float32 or bfloat16, with 0 where a bit is not set."""

    def statistics(self, x: Tensor) -> Statistics:
        """Return statistics of each channel of a float32 tensor."""

    def normalise(
        self,
        statistics: Statistics,
        unit: AccumulatorScale,
        bias: Tensor | None,
        norm: BatchNorm | None,
        clamp: Clamp,
        count: int,
    ) -> tuple[Normalised, tuple[Tensor, Tensor]]:
        """Return the normalisation of a layer's sums, and the range of its output after the clamp.

        The output is monotone in the sums, so its range follows from the min and max of each channel's sums.

        Args:
            statistics: Statistics of the sums.
            unit: Scales of the sums.
            bias: Bias of the layer, (C,).
            norm: The BatchNorm that follows the layer; its running averages are updated.
            clamp: The clamp that follows it.
            count: Number of values per channel.
        """

    def affine_quantize(
        self, x: Tensor, factor: Tensor, offset: Tensor, clamp: Clamp, qparams: QuantizationParameters
    ) -> Tensor:
        """Return the quantized values of `clamp(x · factor + offset)`, factor and offset (C,)."""

    def scale_sums(self, sums: Tensor, shift: Tensor | None, factor: Tensor, offset: Tensor) -> Tensor:
        """Return `(sums + shift) · factor + offset`, float32; sums with channels and shift (C,) are int32.

        Without a shift the sums may also be float32.
        """

    def gradient_sums(self, output: OutputGradient, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return per channel, (C,) float32, the sums of the passed gradient and of its product with `x − mean`."""

    def normalisation_terms(
        self, norm: Normalised, passed: Tensor, products: Tensor, count: int
    ) -> tuple[GradientTerms, Tensor]:
        """Return the coefficients of the gradient through BatchNorm, see `terms` in parameters.py, and that of γ.

        Args:
            norm: The normalisation of the forward pass.
            passed: Sum of the passed gradient from `gradient_sums`, (C,).
            products: The second sum from `gradient_sums`, (C,).
            count: Number of values per channel.
        """

    def gradient_range(self, output: OutputGradient, terms: GradientTerms) -> tuple[Tensor, Tensor]:
        """Return the range of the gradient of the layer's output."""

    def gradient_step(self, low: Tensor, high: Tensor, quant_max: Tensor) -> Tensor:
        """Return a gradient's quantization step, 0-dim: `range / (quant_max − 1)`, range including 0; 1 if empty."""

    def gradient_codes(
        self, output: OutputGradient, terms: GradientTerms, step: Tensor, seed: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Return the gradient of the layer's output, rounded: floor(gradient / step + noise of index and seed).

        The integers have type float32 or bfloat16, and bfloat16 if `output.gradient` is bfloat16.
        """

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        """Return floor(gradient / step + noise) · step of a float32 tensor."""

    def scale(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return `x · (a · b)`, float32, of a float32 or bfloat16 tensor and two 0-dim ones; may overwrite `x`."""
