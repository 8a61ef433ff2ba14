"""From any traceable model to a graph in a small vocabulary: modules compute; functions add, multiply and reshape."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cpt_deploy.errors import ConversionError


def is_torchvision_depth(module: nn.Module | None) -> bool:
    """Return whether a module is torchvision's StochasticDepth; by name, since torchvision takes long to import."""
    kind = type(module)
    return kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision.")


class NetworkTracer(fx.Tracer):
    """Keeps every `torch.nn` module whole, and the few others that are one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a call of a module is one operation of the graph."""
        if not parametrize.type_before_parametrizations(m).__module__.startswith("torch."):
            return is_torchvision_depth(m)  # a parametrized module of the user's is of a class that torch made
        return is_torchvision_depth(m) or super().is_leaf_module(m, module_qualified_name)


class NoIntegerFormError(ConversionError):
    """A model is not integer from end to end; it may be captured with operations in float."""


class ChannelwiseConstant(nn.Module):
    """`x · factor + offset` with numbers, the form in which arithmetic with constants enters the graph."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor = factor
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return x * self.factor + self.offset


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """Trace a model, bring its graph to the vocabulary of `prepare`, and note the shape of each tensor.

    Args:
        model: Any module whose graph `torch.fx` can trace.
        input_shape: Shape of one input without the batch dimension.

    Returns:
        A graph module that computes the same as `model`; `node.meta["shape"]` holds shapes for a batch of 2.

    Raises:
        ConversionError: If the model cannot be traced or does not take such an input.
    """
    training = model.training
    model.eval()
    try:
        graph = _graph(model, input_shape)
    except Exception as error:
        raise NoIntegerFormError(
            f"Expected a model whose graph can be traced, but tracing {type(model).__name__} failed: {error}",
            hint="control flow that depends on tensor values must go, or into a module of its own",
        ) from error
    traced = fx.GraphModule(model, graph)
    _check_single_input(traced)
    _lift_functions(traced)
    _make_out_of_place(traced)
    _decompose_gated_activations(traced)
    _remove_no_ops(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    try:
        propagate_shapes(traced, input_shape)
    except Exception as error:
        cause = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"Expected {type(model).__name__} to take an input of shape (N, {', '.join(map(str, input_shape))}), "
            f"but it failed: {cause}"
        ) from error
    traced.train(training)
    return traced


def _graph(model: nn.Module, input_shape: tuple[int, ...]) -> fx.Graph:
    """Trace a model; where it asks for numbers, with its sizes known."""
    from cpt_deploy.quantization.known_sizes import SizeTracer

    try:
        return NetworkTracer().trace(model)
    except Exception as error:
        try:
            return SizeTracer(input_shape).trace(model)
        except Exception:
            raise error from None


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes the shape of every floating-point tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("shape", None)
        if isinstance(result, Tensor) and result.is_floating_point():
            n.meta["shape"] = tuple(result.shape)
        return result


def propagate_shapes(traced: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Run a graph on a batch of two zeros, in evaluation mode, and note in `node.meta["shape"]` what comes out.

    The zeros are float32, or of the type that the input's `meta["dtype"]` says.
    """
    modes = {module: module.training for module in traced.modules()}
    traced.eval()
    device = next((p.device for p in traced.parameters()), torch.device("cpu"))
    given = next(node for node in traced.graph.nodes if node.op == "placeholder")
    with torch.no_grad():
        recorder = _ShapeRecorder(traced)
        recorder.extra_traceback = False
        recorder.run(torch.zeros(2, *input_shape, dtype=given.meta.get("dtype", torch.float32), device=device))
    for module, mode in modes.items():
        module.training = mode


def is_tensor(node: fx.Node) -> bool:
    """Return whether a node of a traced graph yields one floating-point tensor."""
    return "shape" in node.meta


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor without the batch dimension."""
    return tuple(int(size) for size in node.meta["shape"][1:])


def describe(node: fx.Node, traced: fx.GraphModule) -> str:
    """Return an operation and its place as an error message names them."""
    if node.op == "call_module":
        return f"{type(traced.get_submodule(str(node.target))).__name__} in module {node.target!r}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    stack = node.meta.get("nn_module_stack") or {}
    place = list(stack.values())[-1][0] if stack else ""
    return f"operation {target!r} in " + (f"module {place!r}" if place else "the model's own forward")


def _check_single_input(traced: fx.GraphModule) -> None:
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    unused = [node for node in inputs[1:] if not node.users]
    for node in unused:
        traced.graph.erase_node(node)
    if len(inputs) - len(unused) != 1:
        raise NoIntegerFormError(f"Expected a model with one input tensor, but got {len(inputs)}")


# --- functions and methods to modules -------------------------------------------------------------------------------


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _pool(module: type[nn.Module]) -> Callable[[fx.Node], nn.Module]:
    names = {
        nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
        nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    }[module]

    def build(node: fx.Node) -> nn.Module:
        values = {name: _argument(node, i + 1, name, None) for i, name in enumerate(names)}
        return module(**{name: value for name, value in values.items() if value is not None})

    return build


def _dropout(node: fx.Node) -> nn.Module:
    return nn.Dropout(float(_argument(node, 1, "p", 0.5)))


_FUNCTION_MODULES: dict[object, Callable[[fx.Node], nn.Module]] = {
    functional.relu: lambda node: nn.ReLU(),
    functional.relu_: lambda node: nn.ReLU(),
    torch.relu: lambda node: nn.ReLU(),
    torch.relu_: lambda node: nn.ReLU(),
    "relu": lambda node: nn.ReLU(),
    "relu_": lambda node: nn.ReLU(),
    functional.relu6: lambda node: nn.ReLU6(),
    functional.hardtanh: lambda node: nn.Hardtanh(
        _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
    ),
    functional.leaky_relu: lambda node: nn.LeakyReLU(_argument(node, 1, "negative_slope", 0.01)),
    functional.elu: lambda node: nn.ELU(_argument(node, 1, "alpha", 1.0)),
    functional.silu: lambda node: nn.SiLU(),
    functional.softplus: lambda node: nn.Softplus(),
    functional.hardswish: lambda node: nn.Hardswish(),
    functional.hardsigmoid: lambda node: nn.Hardsigmoid(),
    functional.sigmoid: lambda node: nn.Sigmoid(),
    torch.sigmoid: lambda node: nn.Sigmoid(),
    "sigmoid": lambda node: nn.Sigmoid(),
    functional.tanh: lambda node: nn.Tanh(),
    torch.tanh: lambda node: nn.Tanh(),
    "tanh": lambda node: nn.Tanh(),
    functional.dropout: _dropout,
    functional.max_pool2d: _pool(nn.MaxPool2d),
    functional.avg_pool2d: _pool(nn.AvgPool2d),
    functional.adaptive_avg_pool2d: lambda node: nn.AdaptiveAvgPool2d(_argument(node, 1, "output_size", 1)),
}


def _lift_functions(traced: fx.GraphModule) -> None:
    """Replace functional forms by the modules that `prepare` knows, each under a name of its own."""
    for node in list(traced.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        module = _module_for(node)
        if module is None:
            continue
        name = f"{node.name}_module"
        if hasattr(traced, name):  # `x + 3` would become `add_module`, which every module has
            name = f"{node.name}_function"
        traced.add_module(name, module)
        with traced.graph.inserting_after(node):
            lifted = traced.graph.call_module(name, (_first_tensor(node),))
        lifted.meta.update(node.meta)
        lifted.meta["in_place"] = _is_in_place(node)
        node.replace_all_uses_with(lifted)
        traced.graph.erase_node(node)


def _first_tensor(node: fx.Node) -> fx.Node:
    operands = [*node.args, *node.kwargs.values()]
    return next(value for value in operands if isinstance(value, fx.Node))


def _module_for(node: fx.Node) -> nn.Module | None:
    if node.target in _FUNCTION_MODULES:
        return _FUNCTION_MODULES[node.target](node)
    return _constant_arithmetic(node)


def _constant_arithmetic(node: fx.Node) -> nn.Module | None:
    """Recognise `x + 3`, `x / 6`, `2 * x` and the like on tensors (shape arithmetic works on other operators' ints)."""
    add = {operator.add, torch.add, operator.iadd, "add", "add_"}
    multiply = {operator.mul, torch.mul, operator.imul, "mul", "mul_"}
    subtract = {operator.sub, torch.sub, operator.isub, "sub", "sub_"}
    divide = {operator.truediv, torch.div, operator.itruediv, "div", "div_"}
    if node.target not in add | multiply | subtract | divide or len(node.args) != 2 or _reads_a_size(node):
        return None
    left, right = node.args
    constant = right if isinstance(left, fx.Node) else left
    if not isinstance(constant, int | float):
        return None
    if node.target in add:
        return ChannelwiseConstant(1.0, float(constant))
    if node.target in multiply:
        return ChannelwiseConstant(float(constant), 0.0)
    if node.target in subtract:
        return ChannelwiseConstant(*((1.0, -float(constant)) if constant is right else (-1.0, float(constant))))
    return ChannelwiseConstant(1.0 / float(constant), 0.0) if constant is right else None


def _reads_a_size(node: fx.Node) -> bool:
    """Return whether a node is arithmetic on sizes, not on tensors."""
    for source in node.all_input_nodes:
        if source.target in ("size", "numel", "dim", len) or (source.target is getattr and source.args[1] == "shape"):
            return True
        if source.op == "call_function" and source.target is not getattr and _reads_a_size(source):
            return source.target in _SIZE_ARITHMETIC
    return False


_SIZE_ARITHMETIC = {operator.getitem, operator.floordiv, operator.mul, operator.add, operator.sub, operator.truediv}


# --- in-place operations ------------------------------------------------------------------------------------------


_IN_PLACE_FUNCTIONS: dict[object, object] = {operator.iadd: operator.add, operator.imul: operator.mul}
_IN_PLACE_METHODS = {"add_": torch.add, "mul_": torch.mul}


def _is_in_place(node: fx.Node) -> bool:
    if node.kwargs.get("inplace") is True:
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.target in _IN_PLACE_FUNCTIONS or node.target in (torch.relu_, functional.relu_)


def _make_out_of_place(traced: fx.GraphModule) -> None:
    """Rewrite in-place operations; what read the overwritten tensor afterwards reads the result."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        in_place = bool(node.meta.get("in_place")) or _is_in_place(node)
        if node.op == "call_module":
            module = traced.get_submodule(str(node.target))
            in_place = in_place or bool(getattr(module, "inplace", False))
        if not in_place or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        for user in list(source.users):
            if order.get(user, -1) > order.get(node, len(order)):
                user.replace_input_with(source, node)
        if node.target in _IN_PLACE_FUNCTIONS:
            node.target = _IN_PLACE_FUNCTIONS[node.target]
        elif node.op == "call_method" and node.target in _IN_PLACE_METHODS:
            node.op, node.target = "call_function", _IN_PLACE_METHODS[str(node.target)]
    for module in traced.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


# --- decompositions and clean-up ------------------------------------------------------------------------------------


def _decompose_gated_activations(traced: fx.GraphModule) -> None:
    """Write SiLU as `x · sigmoid(x)` and Hardswish as `x · hardsigmoid(x)`: each part has an integer form."""
    gates = {nn.SiLU: nn.Sigmoid, nn.Hardswish: nn.Hardsigmoid}
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        gate = gates.get(type(traced.get_submodule(str(node.target))))
        if gate is None:
            continue
        name = f"{node.name}_gate"
        traced.add_module(name, gate())
        source = node.all_input_nodes[0]
        with traced.graph.inserting_before(node):
            gated = traced.graph.call_module(name, (source,))
            product = traced.graph.call_function(operator.mul, (source, gated))
        gated.meta.update(node.meta)
        product.meta.update(node.meta)
        node.replace_all_uses_with(product)
        traced.graph.erase_node(node)


def _remove_no_ops(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        identity = node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), nn.Identity)
        if identity or (node.op == "call_method" and node.target == "float"):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
