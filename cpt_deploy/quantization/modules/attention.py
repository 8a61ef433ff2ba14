"""Scaled dot-product attention, which computes in float in training and in serving.

Quantizing it gains nothing in onnxruntime; most time goes to the quantized Linear layers around it.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class ScaledDotProductAttention(nn.Module):
    """`softmax(Q · Kᵀ · scale + mask) · V` (Vaswani et al., 2017, equation 1) with dropout in training.

    Args:
        dropout: Probability that a weight of the softmax is dropped.
        is_causal: Whether a position attends only to itself and those before it.
        scale: Factor of the products; None is 1/√(size of a head).
        grouped: Whether several query heads share one head of keys and values.
    """

    def __init__(self, dropout: float, is_causal: bool, scale: float | None, grouped: bool) -> None:
        super().__init__()
        self.dropout, self.is_causal, self.scale, self.grouped = dropout, is_causal, scale, grouped

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend: (N, heads, T, size) each, mask bool or float that broadcasts to (N, heads, T, T)."""
        dropout = self.dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, mask, dropout, **self.options())

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the operator."""
        options: dict[str, Any] = {"is_causal": self.is_causal, "scale": self.scale}
        return options | ({"enable_gqa": True} if self.grouped else {})

    def extra_repr(self) -> str:
        """Return the attributes that `print(model)` shows."""
        return f"dropout={self.dropout}, is_causal={self.is_causal}"
