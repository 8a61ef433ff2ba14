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


class Statistics(NamedTuple):
    """Per channel of a tensor, (C,) float32: mean, variance (divided by the count), least and greatest value."""

    mean: Tensor
    variance: Tensor
    least: Tensor
    greatest: Tensor


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

    Codes are uint8. Tensors with channels are (N, C, H, W) in channels-last memory, or (..., C). Ranges are 0-dim
    float32 tensors (low, high) and NaN if a value is NaN. Everything but sums is equal in all backends, bit for bit.
    """

    @property
    def name(self) -> str:
        """What `cpt info` calls the backend."""

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and greatest value of a float32 tensor."""

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

    def affine_quantize(self, x: Tensor, factor: Tensor, offset: Tensor, clamp: Clamp, grid: Grid) -> Tensor:
        """Return the codes of `clamp(x · factor + offset)`, factor and offset (C,)."""

    def scale_sums(self, sums: Tensor, shift: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        """Return `(sums + shift) · factor + offset`, float32, of sums (rows, C) and shift (C,), both int32."""

    def gradient_sums(self, site: Site, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return per channel, (C,) float32, the sum of the passed gradient and of it times `x − mean`."""

    def gradient_range(self, site: Site, terms: Terms) -> tuple[Tensor, Tensor]:
        """Return the range of the gradient of a site's `x`."""

    def gradient_codes(self, site: Site, terms: Terms, step: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
        """Return integers: floor(gradient of x / step + noise of index and seed).

        Their type is float32 or bfloat16, and bfloat16 if the gradient's is.
        """

    def round_gradient(self, gradient: Tensor, step: Tensor, seed: int) -> Tensor:
        """Return floor(gradient / step + noise) · step of a float32 tensor."""
