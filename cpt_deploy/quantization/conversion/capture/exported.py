"""Capture models with float parts as a graph of ATen operators.

`torch.export` runs a model on tensors without values and records every operator, with the batch size as a symbol:
attention becomes matrix products and a softmax, the class token an expanded parameter. Modules that differ between
training and evaluation (dropout, stochastic depth, BatchNorm) are kept, so the graph trains as the model did.
"""

import inspect
import itertools
import operator
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.conversion.capture.aten import aten, bring_to_known_forms, make_out_of_place
from cpt_deploy.quantization.conversion.capture.recurrent import lift_recurrent, recurrent_layers
from cpt_deploy.quantization.conversion.capture.training_behaviour import STATISTICS, lift_training_behaviour, marked
from cpt_deploy.quantization.graph.results import Structure
from cpt_deploy.quantization.graph.shapes import describe, is_tensor, propagate_shapes, results_of
from cpt_deploy.quantization.graph.signature import Example, dims_of, zeros_of


def capture(
    source: nn.Module, model: nn.Module, example: Example, structure: Structure, excluded: Set[str] = frozenset()
) -> fx.GraphModule:
    """Capture a model as a graph of ATen operators, and of modules that differ between training and evaluation.

    Args:
        source: The model to capture, with its hooks.
        model: The model with which the graph shares its parameters: a copy without hooks, or `source` itself.
        example: Inputs of the model.
        structure: Structure of its outputs.
        excluded: Paths of modules that stay in float.

    Returns:
        A graph of the input tensors that computes the same as the model, for any batch size, and returns one tensor or
        a tuple of them; `node.meta["val"]` holds symbolic shapes and `node.meta["shape"]` those of a batch of two.

    Raises:
        ConversionError: If the model cannot be captured; names the operator and the module.
    """
    source.train()
    with marked(source), recurrent_layers(source, excluded), _fixed_momentum(source):
        program = _export(source, example, type(model).__name__)
    spec = program.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    traced = _graph_module(model, program)
    _list_results(traced, spec, structure)
    _fold_constants(traced)
    lift_training_behaviour(traced, model)
    lift_recurrent(traced, model)
    make_out_of_place(traced)
    bring_to_known_forms(traced)
    _read_batch_size_once(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    propagate_shapes(traced, example.signature)
    if not all(is_tensor(result) for result in results_of(traced.graph)):
        raise ConversionError(
            "Expected a network that returns floating-point values, but it returns others",
            hint="move argmax and comparisons to the code that reads the results",
        )
    return traced


def _export(model: nn.Module, example: Example, name: str) -> fx.GraphModule:
    device = next((parameter.device for parameter in model.parameters()), None)
    # distinct sizes, so that none is confused with another
    inputs = zeros_of(example.signature, 2, example.signature.sizes(1), device=device)
    given = dict(zip(example.parameters, inputs, strict=True))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # recurrent layers list their weights anew when these are replaced, which changes nothing
            warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights", UserWarning)
            program = torch.export.export(
                model,
                () if example.by_name else inputs,
                given if example.by_name else None,
                dynamic_shapes=_by_parameter(model, example),
            )
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f"Expected a model whose graph can be traced, but capturing {name} failed: {_reason(error)}",
            hint="remove control flow that depends on tensor values; the batch size must be free"
            + (", and so must the sizes in dynamic_shapes" if example.signature.free else ""),
        ) from error
    module: fx.GraphModule = program.module(check_guards=False)
    return module


def _by_parameter(model: nn.Module, example: Example) -> Any:
    """Return the free dimensions of each input as `torch.export` takes them: those of `*args` and `**kwargs` nested."""
    shapes = dims_of(example.signature, together=True)
    known = inspect.signature(model.forward).parameters.values()
    if example.by_name:
        named = dict(zip(example.parameters, shapes, strict=True))
        rest = [parameter.name for parameter in known if parameter.kind is parameter.VAR_KEYWORD]
        own = {parameter.name for parameter in known} - {*rest}
        others = {name: shape for name, shape in named.items() if name not in own}
        return {name: shape for name, shape in named.items() if name in own} | ({rest[0]: others} if others else {})
    count = sum(parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in known)
    return (*shapes[:count], tuple(shapes[count:])) if len(shapes) > count else tuple(shapes)


@contextmanager
def _fixed_momentum(model: nn.Module) -> Iterator[None]:
    """Give BatchNorms with a cumulative average, which count batches, a momentum during capture only."""
    counting = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.momentum is None]
    for norm in counting:
        norm.momentum = 0.1
    try:
        yield
    finally:
        for norm in counting:
            norm.momentum = None


def _reason(error: Exception) -> str:
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # imports sympy

    if isinstance(error, GuardOnDataDependentSymNode):
        return "its control flow depends on values of tensors"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Suggested fixes:" in lines:  # of free sizes
        fixes = lines[lines.index("Suggested fixes:") + 1 :]
        return f"not every size in dynamic_shapes is possible; torch suggests {', '.join(_until_prose(fixes))}"
    guard = next((line for line in lines if line.startswith("- Not all values of")), None)
    if guard is not None:  # the line before it names the free sizes only
        return f"not every size in dynamic_shapes is possible: n{guard.removeprefix('- N').rstrip('.')}"
    return lines[0].partition(". ")[0] if lines else type(error).__name__


def _until_prose(fixes: list[str]) -> list[str]:
    return list(itertools.takewhile(lambda line: "=" in line, fixes))


def _graph_module(model: nn.Module, program: fx.GraphModule) -> fx.GraphModule:
    """Bind a captured graph to the model's own parameters, under their names."""
    for node in list(program.graph.nodes):
        if node.op == "get_attr" and not _has_attribute(model, str(node.target)):
            model.register_buffer(str(node.target).replace(".", "_"), _attribute(program, str(node.target)))
            node.target = str(node.target).replace(".", "_")
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ConversionError(f"Expected a graph of operators, but got {describe(node, program)}")
        elif "assert" in str(node.target) or "sym_constrain" in str(node.target) or node.op == "call_module":
            node.replace_all_uses_with(None)
            program.graph.erase_node(node)
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    return fx.GraphModule(model, graph, class_name=type(model).__name__)


def _has_attribute(model: nn.Module, path: str) -> bool:
    try:
        _attribute(model, path)
    except AttributeError:
        return False
    return True


def _attribute(model: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(model)


def _list_results(traced: fx.GraphModule, spec: torch.utils._pytree.TreeSpec, structure: Structure) -> None:
    output = next(iter(traced.graph.find_nodes(op="output")))
    result = torch.utils._pytree.tree_unflatten(torch.utils._pytree.tree_leaves(output.args[0]), spec)
    try:
        results = structure.tensors(result)
    except ValueError as error:
        raise ConversionError(
            f"Expected a model that returns the same tensors in training and in evaluation, but {error}",
            hint="return only tensors, and the same ones in both modes",
        ) from error
    output.args = (results[0] if len(results) == 1 else tuple(results),)
    traced.graph._codegen = fx.graph.CodeGen()


# --- independent of the input ------------------------------------------------------------------------


def _fold_constants(traced: fx.GraphModule) -> None:
    """Compute values that depend on neither input nor parameters (masks of windows, positions) once."""
    values: dict[fx.Node, Any] = {}
    for node in list(traced.graph.nodes):
        if node.op == "get_attr":
            value = _attribute(traced, str(node.target))
            if not isinstance(value, nn.Parameter) and not str(node.target).endswith(STATISTICS):
                values[node] = value.clone()
        elif node.op == "call_function" and _is_constant(node, values):
            arguments, options = fx.node.map_arg((node.args, node.kwargs), values.get)
            if node.target is aten.new_zeros.default and not isinstance(arguments[0], Tensor):
                arguments, options = (arguments[1],), {"dtype": torch.float32, **options}
                values[node] = torch.zeros(*arguments, **options)
            else:
                values[node] = node.target(*arguments, **options)
    for node, value in values.items():
        used = [user for user in node.users if user not in values]
        if node.op == "call_function" and used and isinstance(value, Tensor):
            name = f"constant_{node.name}"
            traced.register_buffer(name, value.clone())
            with traced.graph.inserting_before(node):
                constant = traced.graph.get_attr(name)
            constant.meta.update(node.meta)
            for user in used:
                user.replace_input_with(node, constant)
    for node in reversed(values):
        if not node.users and node.op == "call_function":
            traced.graph.erase_node(node)


def _is_constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Return whether a node's value is known: it reads known values, or only the types of others."""
    if isinstance(node.target, torch._ops.OpOverload) and (
        node.target.namespace != "aten" or torch.Tag.nondeterministic_seeded in node.target.tags
    ):
        return False  # it represents a module, or draws
    if node.target is aten.new_zeros.default:
        sizes: Any = node.args[1]
        return all(isinstance(size, int) for size in sizes)
    return all(source in values for source in node.all_input_nodes)


# --- clean-up ---------------------------------------------------------------


def _read_batch_size_once(traced: fx.GraphModule) -> None:
    """Make all users of the batch size read it from the input, so they depend on no other tensor for it."""
    placeholders = list(traced.graph.find_nodes(op="placeholder"))
    given = placeholders[0]
    batch = given.meta["val"].shape[0]
    nodes = [node for node in traced.graph.nodes if node.target is aten.sym_size.int and node.meta["val"] == batch]
    with traced.graph.inserting_after(placeholders[-1]):
        size = traced.graph.call_function(aten.sym_size.int, (given, 0))
    size.meta["val"] = batch
    for node in nodes:
        node.replace_all_uses_with(size)
        traced.graph.erase_node(node)
