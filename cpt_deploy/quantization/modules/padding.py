"""Padding of tensors as a module."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Padding(nn.Module):
    """Pads with zeros or with values of the tensor, as `torch.nn.functional.pad`; scale and zero point are kept.

    Args:
        widths: Widths at begin and end of the last dimension, then of the one before it, and so on; negative widths
            crop.
        mode: "constant" for zeros, "reflect", "replicate" or "circular".
    """

    def __init__(self, widths: Sequence[int], mode: str) -> None:
        super().__init__()
        self.widths = tuple(int(width) for width in widths)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Pad a tensor that has at least the padded dimensions."""
        return functional.pad(x, self.widths, self.mode)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.widths}, mode={self.mode}"
