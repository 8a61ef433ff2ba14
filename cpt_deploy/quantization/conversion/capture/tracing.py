"""Trace a model to a graph in a small vocabulary: modules compute; functions add, multiply and reshape."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from cpt_deploy.quantization.conversion.capture.arguments import give_by_position, unpack_sequences
from cpt_deploy.quantization.conversion.capture.constants import (
    clamp,
    constant_arithmetic,
    fold_buffers,
    join_constants,
)
from cpt_deploy.quantization.conversion.capture.sizes.folding import Seen, fold_sizes
from cpt_deploy.quantization.conversion.capture.tracer import Tracer
from cpt_deploy.quantization.graph.naming import free_name, replace_by_module
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError
from cpt_deploy.quantization.graph.results import Structure
from cpt_deploy.quantization.graph.shapes import describe, propagate_shapes
from cpt_deploy.quantization.graph.signature import Example


def trace(
    source: nn.Module, model: nn.Module, example: Example, structure: Structure, *, training: bool = False
) -> fx.GraphModule:
    """Trace a model, rewrite its graph to the vocabulary of `prepare`, and record the shape of each tensor.

    Args:
        source: The module to trace, with its hooks; `torch.fx` must be able to trace it.
        model: The module that holds the modules of the graph: a copy without hooks, or `source` itself.
        example: Inputs of the model.
        structure: Structure of its outputs.
        training: Whether branches on `self.training` are taken as in training.

    Returns:
        A graph module of the input tensors, which returns one tensor or a tuple of them; `node.meta["shape"]` holds
        shapes for a batch of 2.

    Raises:
        NoIntegerFormError: If the model cannot be traced, or its graph fails on the example's inputs.
    """
    source.train(training)
    try:
        graph = _graph(source, example, structure)
    except Exception as error:
        raise NoIntegerFormError(
            f"Expected a model whose graph can be traced, but tracing {type(model).__name__} failed: {error}",
            hint="remove control flow that depends on tensor values, or move it into a separate module",
            reason=f"its graph cannot be traced: {error}",
        ) from error
    traced = fx.GraphModule(model, graph)
    traced.eval()  # propagating shapes must not change statistics
    fold_buffers(traced)
    give_by_position(traced)
    try:
        _lift_functions(traced, fold_sizes(traced, example.signature, _FUNCTION_MODULES), training=training)
        _make_out_of_place(traced)
        _decompose_gated_activations(traced)
        _remove_no_ops(traced)
        join_constants(traced)
        traced.graph.eliminate_dead_code()
        traced.recompile()
        propagate_shapes(traced, example.signature)
        if unpack_sequences(traced):
            propagate_shapes(traced, example.signature)
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise NoIntegerFormError(
            f"Expected {type(model).__name__} to take {example.described()}, but it failed: {cause}",
            reason=f"its graph fails: {cause}",
        ) from error
    return traced


def _graph(model: nn.Module, example: Example, structure: Structure) -> fx.Graph:
    """Trace a model; with known sizes if its code needs them as numbers."""
    from cpt_deploy.quantization.conversion.capture.sizes.known import SizeTracer

    try:
        return _without_tracer(Tracer(example, structure).trace(model))
    except Exception as error:
        try:
            return _without_tracer(SizeTracer(example, structure).trace(model))
        except Exception:
            raise error from None


def _without_tracer(graph: fx.Graph) -> fx.Graph:
    """Return a graph that does not name the tracer that made it: unpickling would trace with another of that class."""
    plain = fx.Graph()
    plain.output(plain.graph_copy(graph, {}))
    return plain


# --- functions and methods to modules -------------------------------------------------------------------------------


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _pool(module: type[nn.Module]) -> Callable[[fx.Node], nn.Module]:
    names = {
        nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
        nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    }[module]

    def build(node: fx.Node) -> nn.Module:
        values = {name: _argument(node, i + 1, name, None) for i, name in enumerate(names)}
        return module(**{name: value for name, value in values.items() if value is not None})

    return build


def _dropout(node: fx.Node) -> nn.Module:
    return nn.Dropout(float(_argument(node, 1, "p", 0.5)))


def _never_drops(node: fx.Node) -> bool:
    """Return whether a dropout is off in a graph that was traced as in training."""
    return node.target is functional.dropout and _argument(node, 2, "training", True) is False


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
    functional.softplus: lambda node: nn.Softplus(
        _argument(node, 1, "beta", 1.0), _argument(node, 2, "threshold", 20.0)
    ),
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


def _lift_functions(traced: fx.GraphModule, seen: Seen, *, training: bool) -> None:
    """Replace functional forms by the modules that `prepare` knows, each under a new name."""
    for node in list(traced.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        found = _module_for(node, traced, seen)
        if training and _never_drops(node):
            found = nn.Identity(), _first_tensor(node)
        if found is None:
            continue
        module, source = found
        described, in_place = describe(node, traced), _is_in_place(node)
        # `x + 3` would become `add_module`, which every module has
        lifted = replace_by_module(traced, node, free_name(traced, f"{node.name}_module"), module, (source,))
        lifted.meta["in_place"], lifted.meta["lifted"] = in_place, described
        if node in seen.values:
            seen.values[lifted] = seen.values[node]


def _first_tensor(node: fx.Node) -> fx.Node:
    operands = [*node.args, *node.kwargs.values()]
    return next(value for value in operands if isinstance(value, fx.Node))


def _module_for(node: fx.Node, traced: fx.GraphModule, seen: Seen) -> tuple[nn.Module, fx.Node] | None:
    """Return the module equivalent to a function or a method, and the tensor that it reads; None if there is none."""
    if node.target in _FUNCTION_MODULES:
        return _FUNCTION_MODULES[node.target](node), _first_tensor(node)
    return constant_arithmetic(node, traced, seen) or clamp(node, traced, seen)


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
    """Rewrite in-place operations; nodes that read the overwritten tensor afterwards read the result."""
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
    """Decompose SiLU to `x · sigmoid(x)` and Hardswish to `x · hardsigmoid(x)`: each part has an integer form."""
    gates = {nn.SiLU: nn.Sigmoid, nn.Hardswish: nn.Hardsigmoid}
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        gate = gates.get(type(traced.get_submodule(str(node.target))))
        if gate is None:
            continue
        name = free_name(traced, f"{node.name}_gate")
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
