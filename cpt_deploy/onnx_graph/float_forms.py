"""Float operations in the forms that onnxruntime runs fastest, traced in place of those of PyTorch.

`torch.onnx` computes each shape at run time from the sizes of the input, and scales queries and keys of attention
separately. Here a reshape has a constant shape where at most one size is not that of the same axis of its input, an
expansion has 1 where sizes remain, and attention has one factor, which onnxruntime fuses into its first product.
Others are here since those of `torch.onnx` differ from PyTorch: attention without keys, log1p and expm1 of small
numbers, and atan2 of zeros.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import values as onnx_values
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from cpt_deploy.integer.float_calls import arguments_of, function_of
from cpt_deploy.integer.operations import Float

_MASKED = -math.inf


@torch.library.custom_op("cpt_deploy::reshaped", mutates_args=())
def _reshaped(x: Tensor, sizes: list[int], form: list[int]) -> Tensor:
    """Reshape to `sizes`; `form` has the same in the notation of ONNX's Reshape."""
    return x.reshape(sizes).clone()


@_reshaped.register_fake
def _(x: Tensor, sizes: list[int], form: list[int]) -> Tensor:
    return x.new_empty(sizes)


@torch.library.custom_op("cpt_deploy::expanded", mutates_args=())
def _expanded(x: Tensor, sizes: list[int], form: list[int]) -> Tensor:
    """Expand to `sizes`; `form` has the same in the notation of ONNX's Expand."""
    return x.expand(sizes).clone()


@_expanded.register_fake
def _(x: Tensor, sizes: list[int], form: list[int]) -> Tensor:
    return x.new_empty(sizes)


def run(operation: Float, inputs: Sequence[Any]) -> Any:
    """Execute a float operation while it is traced, in the form in which it is to be written."""
    arguments, options = arguments_of(operation, inputs)
    return _FORMS.get(operation.target, function_of(operation.target))(*arguments, **options)


def translations(opset: int) -> dict[Any, Callable[..., Any]]:
    """Return how the operators that `run` calls are written, as `torch.onnx` takes it."""
    operators = onnx_values.Opset("", opset)

    def reshaped(x: Any, sizes: Any, form: Sequence[int]) -> Any:
        return operators.Reshape(x, operators.Constant(value_ints=list(form)))

    def expanded(x: Any, sizes: Any, form: Sequence[int]) -> Any:
        return operators.Expand(x, operators.Constant(value_ints=list(form)))

    return {
        torch.ops.cpt_deploy.reshaped.default: reshaped,
        torch.ops.cpt_deploy.expanded.default: expanded,
    }


def _reshape(x: Tensor, sizes: Sequence[Any]) -> Tensor:
    """Reshape a tensor; a size of 0 in a constant shape is that of the same axis of the input."""
    form = [
        0 if axis < x.dim() and statically_known_true(size == x.shape[axis]) and not _is_plain(size) else size
        for axis, size in enumerate(sizes)
    ]
    inferred = [axis for axis, size in enumerate(form) if not isinstance(size, int)]
    if len(inferred) > 1 or (inferred and -1 in form):
        return x.reshape(list(sizes))
    full = list(x.reshape(list(sizes)).shape)
    form = [-1 if axis in inferred else size for axis, size in enumerate(form)]
    result: Tensor = torch.ops.cpt_deploy.reshaped(x, full, form)
    return result


def _expand(x: Tensor, sizes: Sequence[Any], *, implicit: bool = False) -> Tensor:
    """Expand a tensor; `implicit` is an argument of the operator that has no effect."""
    before = [1] * (len(sizes) - x.dim()) + list(x.shape)
    kept = [
        (isinstance(size, int) and size == -1) or statically_known_true(size == found)
        for size, found in zip(sizes, before, strict=True)
    ]
    form = [1 if keep else size for size, keep in zip(sizes, kept, strict=True)]
    if not all(map(_is_plain, form)):
        return x.expand(list(sizes))
    full = [found if keep else size for size, found, keep in zip(sizes, before, kept, strict=True)]
    result: Tensor = torch.ops.cpt_deploy.expanded(x, full, form)
    return result


def _is_plain(size: Any) -> bool:
    return isinstance(size, int)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `softmax(Q · scale · Kᵀ + mask) · V`, 0 where the mask leaves no key; dropout is off."""
    if enable_gqa:
        count = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(count, 1), value.repeat_interleave(count, 1)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        rows, columns = (torch.arange(size, device=query.device) for size in (query.shape[-2], key.shape[-2]))
        mask = columns <= rows[:, None]
        return torch.matmul(torch.softmax(scores + torch.where(mask, 0.0, _MASKED), -1), value)  # each row has a key
    if mask is None:
        return torch.matmul(torch.softmax(scores, -1), value)
    added = torch.where(mask, 0.0, _MASKED) if mask.dtype == torch.bool else mask
    result = torch.matmul(torch.softmax(scores + added, -1), value)
    # The softmax of a row without keys is NaN, which a quantizer would make an ordinary integer.
    return torch.where(added.amax(-1, keepdim=True) == _MASKED, 0.0, result)


def _log1p(x: Tensor) -> Tensor:
    """Compute log(1 + x), whose rounded sum alone would lose small x; Kahan's factor restores it."""
    x = x.to(torch.float32)
    u = 1 + x
    return torch.where((u == 1) | (u == math.inf), x, torch.log(u) * (x / (u - 1)))


def _expm1(x: Tensor) -> Tensor:
    """Compute exp(x) - 1, whose rounded power alone would lose small x; Kahan's factor restores it."""
    x = x.to(torch.float32)
    u = torch.exp(x)
    ends = torch.where(u == 1, x, u - 1)  # the factor would be 0/0 or inf/inf
    return torch.where((u == 1) | (u - 1 == -1) | (u == math.inf), ends, (u - 1) * (x / torch.log(u)))


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """Compute the angle of (x, y) from that of (|x|, |y|); the sign of a zero counts, as in PyTorch."""
    y, x = y.to(torch.float32), x.to(torch.float32)
    up, along = y.abs(), x.abs()
    angle = torch.where((up == 0) & (along == 0), 0.0, torch.atan(up / along))
    angle = torch.where((up == math.inf) & (along == math.inf), math.pi / 4, angle)
    angle = torch.where(_is_negative(x), math.pi - angle, angle)
    return torch.where(_is_negative(y), -angle, angle)


def _is_negative(x: Tensor) -> Tensor:
    return (x < 0) | (torch.reciprocal(x) < 0)  # of -0.0 it is -inf


_FORMS: dict[str, Callable[..., Any]] = {
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten.expand.default": _expand,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.log1p.default": _log1p,
    "aten.expm1.default": _expm1,
    "aten.atan2.default": _atan2,
}
