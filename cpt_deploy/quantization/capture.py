"""From models that are not integer from end to end to a graph of ATen operators.

`torch.export` runs a model on tensors without values and writes down every operator, with the batch size as a symbol:
attention is then products and a softmax, the class token a parameter that is expanded. What training does otherwise
than evaluation (dropout, stochastic depth, BatchNorm) is kept as modules, so the graph trains as the model did.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.aten import aten, is_mutating, make_out_of_place
from cpt_deploy.quantization.attention import ScaledDotProductAttention
from cpt_deploy.quantization.tracing import describe, propagate_shapes

#: Batches on which a captured graph must compute what the model does; the second is not the one it was captured with.
_PROBES = (2, 3)
#: How far float32 may lie from itself when operators are put together differently, relative to the largest value.
_TOLERANCE = 1e-3

_SPATIAL_DROPOUTS = {aten.dropout.default: nn.Dropout, aten.feature_dropout.default: nn.Dropout2d}


@torch.library.custom_op("cpt_deploy::stochastic_depth", mutates_args=())
def _stochastic_depth(x: Tensor, name: str) -> Tensor:
    """Stand for the stochastic depth module of that name, which draws random numbers in training."""
    return x.clone()


@_stochastic_depth.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


class _StochasticDepthMark(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.cpt_deploy.stochastic_depth(x, self.name)
        return result


def is_stochastic_depth(module: nn.Module) -> bool:
    """Return whether a module drops whole branches in training and does nothing in evaluation.

    torchvision, timm and transformers each have a class of their own for it.
    """
    name = type(module).__name__
    return name == "StochasticDepth" or name.endswith("DropPath")


def capture(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> fx.GraphModule:
    """Capture a model as a graph of ATen operators and of modules for what training does otherwise than evaluation.

    Args:
        model: The model, whose parameters the graph shares.
        input_shape: Shape of one input without the batch dimension.
        dtype: Type of the input: float32, or int64 for token ids.

    Returns:
        A graph that computes what the model does, for any batch size; `node.meta["val"]` holds symbolic shapes and
        `node.meta["shape"]` those of a batch of two.

    Raises:
        ConversionError: If the model cannot be captured, with the operator and the module.
    """
    training = model.training
    model.train()
    stochastic = {name: module for name, module in model.named_modules() if is_stochastic_depth(module)}
    for name in stochastic:
        model.set_submodule(name, _StochasticDepthMark(name))
    program = _export(model, torch.zeros(2, *input_shape, dtype=dtype), type(model).__name__)
    for name, module in stochastic.items():
        model.set_submodule(name, module)
    traced = _graph_module(model, program)
    _take_only_result(traced)
    _fold_constants(traced)
    _lift_training_behaviour(traced, model)
    make_out_of_place(traced)
    _read_batch_size_once(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    next(iter(traced.graph.find_nodes(op="placeholder"))).meta["dtype"] = dtype
    propagate_shapes(traced, input_shape)
    _check(traced, model, input_shape, dtype)
    traced.train(training)
    return traced


def _export(model: nn.Module, example: Tensor, name: str) -> fx.GraphModule:
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        with torch.no_grad():
            program = torch.export.export(
                model, (example.to(device),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
            )
    except Exception as error:
        raise ConversionError(
            f"Expected a model whose graph can be traced, but capturing {name} failed: {_reason(error)}",
            hint="the result must be a tensor and nothing beside it; of transformers' models: config.use_cache=False"
            if "not a known type" in str(error)
            else "control flow that depends on tensor values must go, and the batch size must be free",
        ) from error
    module: fx.GraphModule = program.module(check_guards=False)
    return module


def _reason(error: Exception) -> str:
    if isinstance(error, GuardOnDataDependentSymNode):
        return "its control flow depends on values of tensors"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].partition(". ")[0] if lines else type(error).__name__


def _graph_module(model: nn.Module, program: fx.GraphModule) -> fx.GraphModule:
    """Put a captured graph on the model's own parameters, under their names."""
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


def _take_only_result(traced: fx.GraphModule) -> None:
    output = next(iter(traced.graph.find_nodes(op="output")))
    results = [leaf for leaf in torch.utils._pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]
    if len(results) != 1:
        raise ConversionError(
            f"Expected a model that returns one tensor of logits, but it returns {len(results)} tensors",
            hint="switch auxiliary outputs off, or wrap the model so that it returns the logits",
        )
    output.args = (results[0],)
    traced.graph._codegen = fx.graph.CodeGen()


# --- what does not depend on the input ---------------------------------------------------------------


def _fold_constants(traced: fx.GraphModule) -> None:
    """Compute once what depends on neither input nor parameters: masks of windows, positions."""
    values: dict[fx.Node, Any] = {}
    for node in list(traced.graph.nodes):
        if node.op == "get_attr":
            value = _attribute(traced, str(node.target))
            if not isinstance(value, nn.Parameter) and not str(node.target).endswith(_STATISTICS):
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


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _is_constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Return whether a node's value is known: it reads known ones, or only the type of what it reads."""
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    if node.target is aten.new_zeros.default:
        sizes: Any = node.args[1]
        return all(isinstance(size, int) for size in sizes)
    return all(source in values for source in node.all_input_nodes)


# --- training ---------------------------------------------------------------


def _lift_training_behaviour(traced: fx.GraphModule, model: nn.Module) -> None:
    """Bring back the model's modules, or make some, for what training does otherwise than evaluation."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _SPATIAL_DROPOUTS:
            module = _SPATIAL_DROPOUTS[node.target](float(node.args[1]))
            replace_by_module(traced, node, f"{node.name}_module", module, node.args[:1])
        elif node.target is torch.ops.cpt_deploy.stochastic_depth.default:
            name = str(node.args[1])
            replace_by_module(traced, node, name, model.get_submodule(name), node.args[:1])
        elif node.target is aten.batch_norm.default and node.args[3] is not None:
            statistics: Any = node.args[3]
            name = str(statistics.target).rpartition(".")[0]
            replace_by_module(traced, node, name, model.get_submodule(name), node.args[:1])
        elif node.target is aten.scaled_dot_product_attention.default:
            _lift_attention(traced, node)
        elif is_mutating(node) and _reads_statistics(node):
            traced.graph.erase_node(node)


def _reads_statistics(node: fx.Node) -> bool:
    source: Any = node.args[0]
    return bool(source.op == "get_attr" and str(source.target).endswith(_STATISTICS))


def _lift_attention(traced: fx.GraphModule, node: fx.Node) -> None:
    values = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    values |= dict(zip(values, node.args, strict=False)) | node.kwargs
    module = ScaledDotProductAttention(
        float(values["dropout_p"]), bool(values["is_causal"]), values["scale"], bool(values["enable_gqa"])
    )
    operands = [values[name] for name in ("query", "key", "value", "attn_mask") if values[name] is not None]
    replace_by_module(traced, node, f"{node.name}_module", module, tuple(operands))


def replace_by_module(
    traced: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, arguments: tuple[Any, ...]
) -> fx.Node:
    """Let a module compute what a node computes, at the node's place."""
    place(traced, name, module)
    with traced.graph.inserting_after(node):
        lifted = traced.graph.call_module(name, arguments)
    lifted.meta.update(node.meta)
    node.replace_all_uses_with(lifted)
    traced.graph.erase_node(node)
    return lifted


def place(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put a module at a path of a graph's module, where there may be one that only holds its parameters."""
    if _has_attribute(traced, name):
        traced.set_submodule(name, module)
    else:
        traced.add_submodule(name, module)


# --- clean-up ---------------------------------------------------------------


def _read_batch_size_once(traced: fx.GraphModule) -> None:
    """Let all that need the batch size read the input's, whose values they then do not depend on."""
    given = next(iter(traced.graph.find_nodes(op="placeholder")))
    batch = given.meta["val"].shape[0]
    nodes = [node for node in traced.graph.nodes if node.target is aten.sym_size.int and node.meta["val"] == batch]
    with traced.graph.inserting_after(given):
        size = traced.graph.call_function(aten.sym_size.int, (given, 0))
    size.meta["val"] = batch
    for node in nodes:
        node.replace_all_uses_with(size)
        traced.graph.erase_node(node)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _check(traced: fx.GraphModule, model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Compare a captured graph with the model in evaluation."""
    generator = torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in model.parameters()), None)
    with _evaluating(traced, model):
        for size in _PROBES:
            if dtype.is_floating_point:
                x = torch.randn(size, *input_shape, generator=generator, dtype=dtype)
            else:
                x = torch.randint(0, 2, (size, *input_shape), generator=generator, dtype=dtype)
            expected = [
                leaf for leaf in torch.utils._pytree.tree_leaves(model(x.to(device))) if isinstance(leaf, Tensor)
            ]
            if not expected:
                continue
            got: Tensor = traced(x.to(device))
            worst = float((got - expected[0]).abs().max())
            if not worst <= _TOLERANCE * max(1.0, float(expected[0].abs().max())):
                raise ConversionError(
                    f"Expected the captured graph of {type(model).__name__} to compute what the model does in "
                    f"evaluation, but its results differ by {worst:.3g}",
                    hint="it may do something else in training than torch.nn's modules do: capture it in evaluation",
                )
