"""Quantizers of activations: each stands on an edge, between what makes a tensor and what reads it."""

import math

import torch
from torch import Tensor, nn

from cpt_deploy.quantization.kernels import Average, Grid, GridLevels, Kernels, Observed, parameters
from cpt_deploy.quantization.numerics.affine import fake_quantize, including_zero, range_of, unsigned_levels
from cpt_deploy.quantization.state.precision_state import PrecisionState, Role


class EdgeQuantizer(nn.Module):
    """Quantizes an activation tensor per tensor, unsigned, with a zero point.

    In training the range is the batch's own and a moving average of it is kept; in evaluation the average is used.

    Args:
        precision: The model's bits.
        role: "cycle", or that of a group, if only such layers read this edge, else "hold".
        momentum: Weight of a new batch in the moving average of the range.
        least_bits: The edge has at least so many bits; the logits keep 8 whatever the bound, since no layer reads them.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, precision: PrecisionState, role: Role, momentum: float, *, least_bits: int = 0) -> None:
        super().__init__()
        self.precision = precision
        self.role: Role = role
        self.momentum = momentum
        self.least_bits = least_bits
        #: Whether codes are signed around a zero point of 0, for runtimes that know no other.
        self.symmetric = False
        #: While settling, every batch counts alike instead of by momentum.
        self.cumulative = False
        #: In a distributed run each step's range over all processes is observed by whoever gathers it.
        self.deferred = False
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0, dtype=torch.int64))
        self.current: tuple[Tensor, Tensor] = (self.low, self.high)
        self._observed: Observed | None = None

    @property
    def bits(self) -> int:
        """The bits at which this edge runs now."""
        return max(self.precision.activation_bits[self.role], self.least_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of the present bits, same shape."""
        if self.training:
            self.take(*range_of(x))
        else:
            self.current, self._observed = (self.low, self.high), None
        return self.quantize(x, self.role, self.least_bits)

    def quantize(self, x: Tensor, role: Role, least_bits: int = 0) -> Tensor:
        """Quantize `x` in this edge's range of the last forward, at the bits of a role."""
        if not self.precision.quantizes_activations(role):
            return x
        return fake_quantize(x, *self._grid(self.current, role, least_bits))

    def grid(self, role: Role | None = None) -> Grid:
        """Return the grid of the last forward, or the one that layers of a role have in the same range."""
        if self._observed is not None and role in (None, "cycle"):
            return self._observed.own if role is None else self._observed.cycle
        return self._grid(self.current, role or self.role, 0 if role else self.least_bits)

    def kept_grid(self, role: Role | None = None) -> Grid:
        """Return the same in the range that was observed over many batches, as evaluation uses it."""
        return self._grid((self.low, self.high), role or self.role, 0 if role else self.least_bits)

    def _grid(self, limits: tuple[Tensor, Tensor], role: Role, least_bits: int) -> Grid:
        levels = self.precision.activation_levels(role)
        if least_bits:
            levels = levels.clamp(min=float(unsigned_levels(least_bits)))
        return parameters.grid_on(*limits, levels, symmetric=self.symmetric)

    def take(self, low: Tensor, high: Tensor, kernels: Kernels | None = None) -> None:
        """Let the range of a training batch be the present one, and observe it.

        Args:
            low: Float32, as `Kernels.range` returns it.
            high: The same.
            kernels: What observes it and makes its grids at once; without it grids are made when asked for.
        """
        if kernels is None:
            self.current, self._observed = including_zero(low, high), None
            if not self.deferred:
                self.observe(*self.current)
            return
        state = self.precision
        least = float(unsigned_levels(self.least_bits)) if self.least_bits else 0.0
        own, cycle = state.activation_levels(self.role), state.activation_levels("cycle")
        levels = GridLevels(own, cycle, least, self.symmetric)
        self._observed = kernels.observe(low, high, None if self.deferred else self._average(), levels)
        self.current = (self._observed.low, self._observed.high)

    def observe(self, low: Tensor, high: Tensor) -> None:
        """Take a batch's least and greatest value, 0-dim, into the moving average."""
        parameters.take(low, high, self._average())

    def _average(self) -> Average:
        return Average(self.low, self.high, self.batches, 0.0 if self.cumulative else self.momentum)

    def forget(self) -> None:
        """Have no present range, until the next forward: the empty one, whose least value is above its greatest."""
        self.current, self._observed = (self.low.new_tensor(math.inf), self.low.new_tensor(-math.inf)), None

    def reset(self) -> None:
        """Forget the observed range."""
        self.batches.zero_()
        self.low.zero_()
        self.high.zero_()
        self.current, self._observed = (self.low, self.high), None

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"role={self.role}"


class LayerInput(nn.Module):
    """Brings an edge that holds the upper bound to the bits of a cycling layer, in the edge's own range.

    At the upper bound it changes nothing, so the frozen graph has no such operation; but where the layer belongs to a
    group whose upper bound is less.

    Args:
        source: The quantizer of the edge.
        role: Whose bits the layer has.
    """

    def __init__(self, source: EdgeQuantizer, role: Role = "cycle") -> None:
        super().__init__()
        self.role = role
        self._source = (source,)  # in a tuple: the edge owns its buffers, this module must not register them again

    @property
    def source(self) -> EdgeQuantizer:
        """The quantizer of the edge that this input reads."""
        return self._source[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid of the layer's present bits, same shape."""
        source = self.source
        bits = source.precision.activation_bits
        # A compiled graph serves all bits; there, what is on the grid is brought to it once more.
        if not torch.compiler.is_compiling() and bits[self.role] == bits["hold"]:
            return x
        return source.quantize(x, self.role)
