"""Multiplication by constants and their addition, per channel."""

from torch import Tensor, nn

Constant = float | Tensor
"""A number, or a tensor of one number per channel, which broadcasts to the tensor that it is combined with."""


class ChannelwiseConstant(nn.Module):
    """`x · factor + offset`, with numbers or with tensors of one number per channel, held as buffers."""

    factor: Constant
    offset: Constant

    def __init__(self, factor: Constant, offset: Constant) -> None:
        super().__init__()
        for name, value in (("factor", factor), ("offset", offset)):
            if isinstance(value, Tensor):
                self.register_buffer(name, value.detach().clone())
            else:
                setattr(self, name, float(value))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor (N, C, ...)."""
        return x * self.factor + self.offset
