"""What a backend of kernels computes. Each function is one or two passes over memory and nothing else."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Grid(NamedTuple):
    """A grid of codes: real value = (code − zero_point) · scale, codes in [0, levels]; 0-dim float32 each."""

    scale: Tensor
    zero_point: Tensor
    levels: Tensor


class Clamp(NamedTuple):
    """Bounds that values are brought into; infinite ones are none."""

    low: float = -float("inf")
    high: float = float("inf")


class Average(NamedTuple):
    """A moving average of ranges, updated in place.

    Args:
        low: 0-dim float32.
        high: 0-dim float32.
        batches: How many ranges it has seen, 0-dim int64.
        momentum: Least weight of a new range; before, all count alike.
    """

    low: Tensor
    high: Tensor
    batches: Tensor
    momentum: float


class GridLevels(NamedTuple):
    """Which grids a range is to have.

    Args:
        own: Greatest code of the edge itself, 0-dim float32.
        cycle: Greatest code of cycling layers that read it, 0-dim float32.
        least: The edge itself has at least these levels.
        symmetric: Whether codes are signed around 0.
    """

    own: Tensor
    cycle: Tensor
    least: float
    symmetric: bool


class Observed(NamedTuple):
    """A range that holds 0, and the grids on it.

    Args:
        low: 0-dim float32.
        high: 0-dim float32.
        own: The edge's own grid.
        cycle: The grid of cycling layers.
    """

    low: Tensor
    high: Tensor
    own: Grid
    cycle: Grid


class Statistics(NamedTuple):
    """Per channel of a tensor, (C,) float32: mean, variance (divided by the count), least and greatest value."""

    mean: Tensor
    variance: Tensor
    least: Tensor
    greatest: Tensor


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


class Unit(NamedTuple):
    """What one unit of a layer's integer sums stands for: input · weight.

    Args:
        input: Scale of the input, 0-dim float32.
        weight: Scales of the weight, (C,) float32.
    """

    input: Tensor
    weight: Tensor


class Normalised(NamedTuple):
    """A layer's normalised output as `sums · factor + offset`; (C,) float32 each.

    Args:
        factor: Real values per unit of the sums.
        offset: Real values.
        mean: Mean of the sums.
        gain: What BatchNorm multiplies the output by, γ/σ; 1 without one.
        deviation: One unit in standard deviations of the output; 0 without BatchNorm.
    """

    factor: Tensor
    offset: Tensor
    mean: Tensor
    gain: Tensor
    deviation: Tensor


class Site(NamedTuple):
    """Where a gradient arrives: at `clamp(x · factor + offset)`.

    Args:
        gradient: float32 or bfloat16, shape and memory order of `x`.
        x: float32.
        factor: (C,) float32.
        offset: (C,) float32.
        clamp: The gradient passes where the clamp leaves the value alone.
    """

    gradient: Tensor
    x: Tensor
    factor: Tensor
    offset: Tensor
    clamp: Clamp


class Terms(NamedTuple):
    """The gradient of a site's `x`: passed gradient · p + x · q + r; (C,) float32 each."""

    p: Tensor
    q: Tensor
    r: Tensor


class Kernels(Protocol):
    """The functions of a backend.

    Codes are uint8. Tensors with channels are (N, C, H, W) in channels-last memory, or (..., C). Ranges are float32
    tensors (low, high), 0-dim, or (parts,) of which the least and the greatest count; NaN if a value is NaN. What
    changes from step to step is on the device: a seed is a 0-dim int64 tensor, its low 32 bits count. Everything but
    sums, averages and what is normalised by them is equal in all backends, bit for bit.

    Raises:
        ValueError: By each function that has no value for an empty tensor (ranges, statistics, scales) and gets one.
        MemoryError: By each compiled function that needs memory of its own and gets none.
    """

    @property
    def name(self) -> str:
        """What `cpt info` calls the backend."""

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and greatest value of a float32 tensor."""

    def observe(self, low: Tensor, high: Tensor, average: Average | None, levels: GridLevels) -> Observed:
        """Take a range, with 0, into a moving average, if there is one, and return it with its grids."""

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        """Return the codes of a float32 tensor: rint(x / scale) + zero_point, saturated."""

    def requantize(self, codes: Tensor, source: Grid, target: Grid) -> Tensor:
        """Return the codes on one grid of what codes on another stand for."""

    def centre(self, codes: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `codes − zero_point` as float32 or bfloat16, which holds these integers exactly."""

    def dequantize(self, codes: Tensor, grid: Grid) -> Tensor:
        """Return the float32 values that codes stand for."""

    def quantize_weight(self, weight: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return int8 codes and scales (O,) of a float32 weight (O, ...); `levels` is 0-dim or (O,)."""

    def real_weight(self, codes: Tensor, scales: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `codes · (scales · step)` of int8 codes (O, ...), scales (O,) and a 0-dim step, in a float type."""

    def add_range(self, a: Tensor, b: Tensor, grids: tuple[Grid, Grid], clamp: Clamp) -> tuple[Tensor, Tensor]:
        """Return the range of the clamped sum of two quantized tensors."""

    def add_quantize(
        self, a: Tensor, b: Tensor, grids: tuple[Grid, Grid], clamp: Clamp, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """Return the codes of the clamped sum, and one bit an element, in memory order: the clamp left it alone."""

    def mask(self, gradient: Tensor, passed: Tensor) -> Tensor:
        """Return a gradient, float32 or bfloat16, with 0 where a bit is not set."""

    def statistics(self, x: Tensor) -> Statistics:
        """Return statistics of each channel of a float32 tensor."""

    def normalise(
        self, statistics: Statistics, unit: Unit, bias: Tensor | None, norm: BatchNorm | None, clamp: Clamp, count: int
    ) -> tuple[Normalised, tuple[Tensor, Tensor]]:
        """Return what makes a layer's output of its sums, and the range of that output after the clamp.

        The range follows from the least and greatest sum of each channel, in which everything is monotone.

        Args:
            statistics: Those of the sums.
            unit: What they stand for.
            bias: The layer's, (C,).
            norm: What follows it; tracks the batch.
            clamp: What follows that.
            count: Values in a channel.
        """

    def affine_quantize(self, x: Tensor, factor: Tensor, offset: Tensor, clamp: Clamp, grid: Grid) -> Tensor:
        """Return the codes of `clamp(x · factor + offset)`, factor and offset (C,)."""

    def scale_sums(self, sums: Tensor, shift: Tensor | None, factor: Tensor, offset: Tensor) -> Tensor:
        """Return `(sums + shift) · factor + offset`, float32, of sums with channels and shift (C,), both int32.

        Without a shift the sums may be float32 as well.
        """

    def gradient_sums(self, site: Site, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return per channel, (C,) float32, the sum of the passed gradient and of it times `x − mean`."""

    def normalisation_terms(
        self, norm: Normalised, passed: Tensor, products: Tensor, count: int
    ) -> tuple[Terms, Tensor]:
        """Return the gradient through BatchNorm, γ/σ · (g − mean(g) − x̂ · mean(g · x̂)), and that of γ.

        Args:
            norm: What was normalised.
            passed: Sum of the gradient, (C,), of `gradient_sums`.
            products: The other sum of it.
            count: Values in a channel.
        """

    def gradient_range(self, site: Site, terms: Terms) -> tuple[Tensor, Tensor]:
        """Return the range of the gradient of a site's `x`."""

    def gradient_step(self, low: Tensor, high: Tensor, levels: Tensor) -> Tensor:
        """Return the step, 0-dim, of a gradient's grid on a range and 0: `range / (levels − 1)`; 1 if it is empty."""

    def gradient_codes(self, site: Site, terms: Terms, step: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor:
        """Return integers: floor(gradient of x / step + noise of index and seed).

        Their type is float32 or bfloat16, and bfloat16 if the gradient's is.
        """

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        """Return floor(gradient / step + noise) · step of a float32 tensor."""

    def scale(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return `x · (a · b)`, float32, of a float32 or bfloat16 tensor and two 0-dim ones; may overwrite `x`."""
