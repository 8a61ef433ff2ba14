"""Activation quantizers, placed between the operation that computes a tensor and those that read it; requantization."""

import torch
from torch import Tensor, nn

from cpt_deploy.quantization.kernels import Average, Kernels, Observed, QuantizationParameters, QuantMax, parameters
from cpt_deploy.quantization.numerics.affine import fake_quantize, including_zero, range_of, unsigned_quant_max
from cpt_deploy.quantization.numerics.recording import is_recorded
from cpt_deploy.quantization.state.precision_state import PrecisionGroup, PrecisionState


class ActivationQuantizer(nn.Module):
    """Quantizes an activation tensor: per tensor, unsigned, with a zero point.

    In training it uses the range of the batch and updates a moving average of it; in evaluation it uses the average.

    Args:
        precision: The model's bits.
        group: That of the layers that read the tensor if all have the same, else "fixed".
        momentum: Weight of a new batch in the moving average of the range.
        min_bits: Min bits of the tensor; the logits keep 8 whatever max_bits, since no layer reads them.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, precision: PrecisionState, group: PrecisionGroup, momentum: float, *, min_bits: int = 0) -> None:
        super().__init__()
        self.precision = precision
        self.group: PrecisionGroup = group
        self.momentum = momentum
        self.min_bits = min_bits
        #: Whether quantized values are signed with zero point 0, for runtimes that support nothing else.
        self.symmetric = False
        #: During calibration, all batches have equal weight instead of momentum.
        self.cumulative = False
        #: In a distributed run, the caller that gathers the range over all processes updates the average.
        self.deferred = False
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("batches", torch.tensor(0, dtype=torch.int64))
        self.current: tuple[Tensor, Tensor] = (self.low, self.high)
        self._observed: Observed | None = None

    @property
    def bits(self) -> int:
        """The current bits of this tensor."""
        return max(self.precision.activation_bits[self.group], self.min_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` fake-quantized at the current bits, same shape."""
        if self.training:
            self.take(*range_of(x))
        else:
            self.current, self._observed = (self.low, self.high), None
        return self.quantize(x, self.group, self.min_bits)

    def quantize(self, x: Tensor, group: PrecisionGroup, min_bits: int = 0) -> Tensor:
        """Fake-quantize `x` in the range of the last forward pass, at the bits of a group."""
        if not self.precision.quantizes_activations(group):
            return x
        return fake_quantize(x, *self._qparams(self.current, group, min_bits))

    def qparams(self, group: PrecisionGroup | None = None) -> QuantizationParameters:
        """Return the quantization parameters of the last forward pass, or those at a group's bits in the same range."""
        if self._observed is not None and group in (None, "scheduled"):
            return self._observed.own if group is None else self._observed.scheduled
        return self._qparams(self.current, group or self.group, 0 if group else self.min_bits)

    def kept_qparams(self, group: PrecisionGroup | None = None) -> QuantizationParameters:
        """Return the quantization parameters in the averaged range, as evaluation uses it."""
        return self._qparams((self.low, self.high), group or self.group, 0 if group else self.min_bits)

    def _qparams(self, limits: tuple[Tensor, Tensor], group: PrecisionGroup, min_bits: int) -> QuantizationParameters:
        quant_max = self.precision.activation_quant_max(group)
        if min_bits:
            quant_max = quant_max.clamp(min=float(unsigned_quant_max(min_bits)))
        return parameters.qparams_on(*limits, quant_max, symmetric=self.symmetric)

    def take(self, low: Tensor, high: Tensor, kernels: Kernels | None = None) -> None:
        """Set the current range to that of a training batch and update the moving average.

        Args:
            low: Float32, as `Kernels.range` returns it.
            high: Likewise.
            kernels: Backend that updates the average and computes all quantization parameters at once; without it,
                the parameters are computed on demand.
        """
        if kernels is None:
            self.current, self._observed = including_zero(low, high), None
            if not self.deferred:
                self.observe(*self.current)
            return
        state = self.precision
        own_min = float(unsigned_quant_max(self.min_bits)) if self.min_bits else 0.0
        own, scheduled = state.activation_quant_max(self.group), state.activation_quant_max("scheduled")
        quant_max = QuantMax(own, scheduled, own_min, self.symmetric)
        self._observed = kernels.observe(low, high, None if self.deferred else self._average(), quant_max)
        self.current = (self._observed.low, self._observed.high)

    def observe(self, low: Tensor, high: Tensor) -> None:
        """Update the moving average with a batch's min and max, 0-dim."""
        parameters.take(low, high, self._average())

    def _average(self) -> Average:
        return Average(self.low, self.high, self.batches, 0.0 if self.cumulative else self.momentum)

    def reset(self) -> None:
        """Reset the moving average."""
        self.batches.zero_()
        self.low.zero_()
        self.high.zero_()
        self.current, self._observed = (self.low, self.high), None

    def extra_repr(self) -> str:
        """Return the attributes that `print(model)` shows."""
        return f"group={self.group}"


class Requantize(nn.Module):
    """Requantizes a tensor of fixed precision to the bits of a layer of scheduled precision, in the tensor's range.

    At max_bits it is the identity, so the frozen graph has no such operation, unless the layer belongs to a group with
    lower max_bits.

    Args:
        source: The activation quantizer of the tensor.
        group: The group whose bits the layer has.
    """

    def __init__(self, source: ActivationQuantizer, group: PrecisionGroup = "scheduled") -> None:
        super().__init__()
        self.group = group
        self._source = (source,)  # in a tuple, so that this module does not register the source's buffers again

    @property
    def source(self) -> ActivationQuantizer:
        """The activation quantizer of the tensor that this module reads."""
        return self._source[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` requantized to the layer's current bits, same shape."""
        source = self.source
        bits = source.precision.activation_bits
        # A recorded step serves all bits, so there values that already have these bits are quantized once more.
        if not is_recorded(x.device) and bits[self.group] == bits["fixed"]:
            return x
        return source.quantize(x, self.group)
