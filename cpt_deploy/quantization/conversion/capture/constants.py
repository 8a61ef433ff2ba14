"""Recognise arithmetic with constants and clamping, and replace both by modules in the graph of an integer network.

`(x - mean) / std` with buffers, `2 * x`, `1 - x` and `-x` become `x · factor + offset` per channel; consecutive ones
are joined, so that a value is rounded once. `torch.clamp`, `minimum` and `maximum` with numbers become `nn.Hardtanh`.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from cpt_deploy.quantization.conversion.capture.sizes.folding import Seen
from cpt_deploy.quantization.graph.naming import free_name
from cpt_deploy.quantization.modules.channelwise_constant import ChannelwiseConstant, Constant

#: Bound on the open side of a one-sided clamp; finite, since it is written as a number to JSON and ONNX.
_UNBOUNDED = torch.finfo(torch.float32).max

# --- recognition ------------------------------------------------------------------------------------------------------

_ADD = {operator.add, torch.add, operator.iadd, "add", "add_"}
_MULTIPLY = {operator.mul, torch.mul, torch.multiply, operator.imul, "mul", "mul_", "multiply", "multiply_"}
_SUBTRACT = {operator.sub, torch.sub, torch.subtract, operator.isub, "sub", "sub_", "subtract", "subtract_"}
_REVERSED = {torch.rsub, "rsub", "__rsub__"}
_DIVIDE = {
    operator.truediv, torch.div, torch.divide, torch.true_divide, operator.itruediv,
    "div", "div_", "divide", "divide_", "true_divide", "true_divide_",
}  # fmt: skip
_NEGATE = {operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative", "negative_"}
_BINARY = _ADD | _MULTIPLY | _SUBTRACT | _REVERSED | _DIVIDE


def constant_arithmetic(node: fx.Node, traced: fx.GraphModule, seen: Seen) -> tuple[nn.Module, fx.Node] | None:
    """Recognise arithmetic of a tensor (N, C, ...) with constants.

    Args:
        node: A call of a function or a method.
        traced: Its graph.
        seen: Shapes and values of its nodes.

    Returns:
        The module that computes the same, and the tensor that it reads; or None.
    """
    if node.target in _NEGATE and seen.is_tensor(node):
        return ChannelwiseConstant(-1.0, 0.0), node.all_input_nodes[0]
    if node.target not in _BINARY or not seen.is_tensor(node) or set(node.kwargs) - {"input", "other", "alpha"}:
        return None
    operands = [*node.args, *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs)]
    alpha: Any = node.kwargs.get("alpha", 1)
    if len(operands) != 2 or not isinstance(alpha, int | float):
        return None
    tensors = [value for value in operands if isinstance(value, fx.Node) and value.op != "get_attr"]
    if len(tensors) != 1 or not seen.is_tensor(tensors[0]):
        return None
    left = operands[0] is tensors[0]
    constant = _channelwise(operands[1 if left else 0], traced, seen.shape(tensors[0]))
    if constant is None or seen.shape(node) != seen.shape(tensors[0]):
        return None
    scaled = _scale_and_offset(node.target, constant, float(alpha), left=left)
    return None if scaled is None else (ChannelwiseConstant(*scaled), tensors[0])


def _scale_and_offset(target: Any, constant: Constant, alpha: float, *, left: bool) -> tuple[Constant, Constant] | None:
    """Return factor and offset of `x ∘ constant`, or of `constant ∘ x` where the tensor is not on the left."""
    if target in _ADD:
        return (1.0, constant * alpha) if left else (alpha, constant)
    if target in _MULTIPLY:
        return constant, 0.0
    if target in _SUBTRACT | _REVERSED:
        subtracts = left is (target in _SUBTRACT)  # `x − α·c`, otherwise `c − α·x`
        return (1.0, -constant * alpha) if subtracts else (-alpha, constant)
    return (1.0 / constant, 0.0) if left else None


def _channelwise(value: Any, traced: fx.GraphModule, shape: tuple[int, ...]) -> Constant | None:
    """Return a number, or a tensor that broadcasts along the channels of a shape (N, C, ...) only; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float | fx.Node):
        return None
    if not isinstance(value, fx.Node):
        return float(value)
    tensor = operator.attrgetter(str(value.target))(traced)
    if isinstance(tensor, nn.Parameter) or not isinstance(tensor, Tensor) or tensor.dim() > len(shape):
        return None
    if tensor.numel() == 1:
        return float(tensor)
    whole = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
    channelwise = len(shape) > 1 and whole == (1, shape[1], *[1] * (len(shape) - 2))
    return tensor.float() if channelwise else None


# --- clamping ---------------------------------------------------------------------------------------------------------

_CLAMPS: dict[object, tuple[str | None, str | None]] = {
    torch.clamp: ("min", "max"), "clamp": ("min", "max"), "clamp_": ("min", "max"), torch.clamp_: ("min", "max"),
    torch.clip: ("min", "max"), "clip": ("min", "max"), "clip_": ("min", "max"), torch.clip_: ("min", "max"),
    torch.clamp_min: ("min", None), "clamp_min": ("min", None), "clamp_min_": ("min", None),
    torch.clamp_max: ("max", None), "clamp_max": ("max", None), "clamp_max_": ("max", None),
    torch.minimum: ("other", None), "minimum": ("other", None), torch.min: ("other", None), "min": ("other", None),
    torch.maximum: ("other", None), "maximum": ("other", None), torch.max: ("other", None), "max": ("other", None),
}  # fmt: skip
_BELOW = {torch.clamp_max, "clamp_max", "clamp_max_", torch.minimum, "minimum", torch.min, "min"}


def clamp(node: fx.Node, traced: fx.GraphModule, seen: Seen) -> tuple[nn.Module, fx.Node] | None:
    """Recognise a tensor clamped to numbers; the same arguments and results as `constant_arithmetic`."""
    if node.target not in _CLAMPS or not seen.is_tensor(node):
        return None
    named: dict[str, Any] = {**node.kwargs}
    for name, value in zip(("input", *_CLAMPS[node.target]), node.args, strict=False):
        if name is None:
            return None
        named[name] = value
    bounds = {name: value for name, value in named.items() if name != "input" and value is not None}
    source: Any = named.get("input")
    if "other" in named and isinstance(source, fx.Node) and source.op == "get_attr":
        source, bounds["other"] = bounds["other"], source
    if not isinstance(source, fx.Node) or not bounds or set(bounds) - {"min", "max", "other"}:
        return None
    numbers = {name: _number(value, traced) for name, value in bounds.items()}
    if any(number is None for number in numbers.values()) or seen.shape(node) != seen.shape(source):
        return None
    if "other" in numbers:
        numbers = {"max" if node.target in _BELOW else "min": numbers["other"]}
    low, high = numbers.get("min"), numbers.get("max")
    if (low, high) == (0.0, None):
        return nn.ReLU(), source
    low = -_UNBOUNDED if low is None else low
    high = _UNBOUNDED if high is None else high
    return (nn.Hardtanh(low, high), source) if low < high else None


def _number(value: Any, traced: fx.GraphModule) -> float | None:
    number = _channelwise(value, traced, ())
    if number is None and isinstance(value, fx.Node) and value.op == "get_attr":
        tensor = operator.attrgetter(str(value.target))(traced)
        one = isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and tensor.numel() == 1
        return float(tensor) if one else None
    return number if isinstance(number, float) else None


# --- clean-up ---------------------------------------------------------------------------------------------------------


def fold_buffers(traced: fx.GraphModule) -> None:
    """Compute values that depend on buffers only, such as `self.mean[:, None, None]`, once."""
    values: dict[fx.Node, Any] = {}
    for node in list(traced.graph.nodes):
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(traced)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                values[node] = value
        elif node.op in ("call_function", "call_method") and node.all_input_nodes:
            if not all(source in values for source in node.all_input_nodes):
                continue
            arguments, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            function: Callable[..., Any] = (
                node.target if callable(node.target) else getattr(torch.Tensor, str(node.target))
            )
            values[node] = function(*arguments, **options)
    for node, value in values.items():
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(user in values for user in node.users):
            continue
        name = free_name(traced, f"{node.name}_constant")
        traced.register_buffer(name, value.detach().clone())
        with traced.graph.inserting_before(node):
            constant = traced.graph.get_attr(name)
        constant.meta.update(node.meta)
        for user in [user for user in node.users if user not in values]:
            user.replace_input_with(node, constant)


def join_constants(traced: fx.GraphModule) -> None:
    """Join consecutive constant modules to one, where nothing else reads the value in between."""
    for node in list(traced.graph.nodes):
        second, source = _constant(node, traced), next(iter(node.all_input_nodes), None)
        first = None if source is None else _constant(source, traced)
        if first is None or second is None or source is None or len(source.users) > 1:
            continue
        joined = ChannelwiseConstant(first.factor * second.factor, first.offset * second.factor + second.offset)
        traced.set_submodule(str(node.target), joined)
        node.replace_input_with(source, source.all_input_nodes[0])
        traced.graph.erase_node(source)


def _constant(node: fx.Node, traced: fx.GraphModule) -> ChannelwiseConstant | None:
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ChannelwiseConstant) else None
