"""Recognise products of tensors with parameters, or with values that are computed from parameters alone."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn import functional

from cpt_deploy.quantization.conversion.capture.aten import aten

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_LINEAR = ("input", "weight", "bias")

#: Layer and argument names of each product; the weight named `right` is (I, O).
_PRODUCTS: dict[object, tuple[type[nn.Module], tuple[str, ...]]] = {
    torch.conv1d: (nn.Conv1d, _CONVOLUTION),
    torch.conv2d: (nn.Conv2d, _CONVOLUTION),
    torch.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    torch.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    functional.linear: (nn.Linear, _LINEAR),
    functional.embedding: (nn.Embedding, ("input", "weight", "padding_idx")),
    operator.matmul: (nn.Linear, ("input", "right")),
    torch.matmul: (nn.Linear, ("input", "right")),
    torch.mm: (nn.Linear, ("input", "right")),
    "matmul": (nn.Linear, ("input", "right")),
    "mm": (nn.Linear, ("input", "right")),
    torch.addmm: (nn.Linear, ("bias", "input", "right")),
    aten.conv1d.default: (nn.Conv1d, _CONVOLUTION),
    aten.conv2d.default: (nn.Conv2d, _CONVOLUTION),
    aten.conv1d.padding: (nn.Conv1d, _CONVOLUTION),
    aten.conv2d.padding: (nn.Conv2d, _CONVOLUTION),
    aten.conv_transpose1d.default: (nn.ConvTranspose1d, _TRANSPOSED),
    aten.conv_transpose2d.input: (nn.ConvTranspose2d, _TRANSPOSED),
    aten.linear.default: (nn.Linear, _LINEAR),
    aten.embedding.default: (nn.Embedding, ("weight", "input", "padding_idx")),
    aten.matmul.default: (nn.Linear, ("input", "right")),
    aten.mm.default: (nn.Linear, ("input", "right")),
    aten.addmm.default: (nn.Linear, ("bias", "input", "right")),
}
_OTHER_NAMES = {"mat1": "input", "mat2": "right", "other": "right", "self": "input"}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_", aten.add.Tensor, aten.add_.Tensor)
_TURNS = ("t", "T", "mT", "t.default", "numpy_T.default", "mT.default")
_SWAPS = ("transpose", "swapaxes", "transpose.int", "permute", "permute.default")
_SWAPPED = ((0, 1), (1, 0), (-1, -2), (-2, -1), (1, -2), (-2, 1), (-1, 0), (0, -1))


class Product(NamedTuple):
    """A call of a product of a tensor and a weight.

    Args:
        kind: The layer class that computes it.
        input: The tensor that is multiplied.
        weight: The parameter, or the node that computes it.
        turned: Whether the weight is the transpose of that node's value.
        bias: The parameter that is added, if there is one.
        options: Geometry by the names of the layer's arguments.
    """

    kind: type[nn.Module]
    input: fx.Node
    weight: fx.Node
    turned: bool
    bias: fx.Node | None
    options: Mapping[str, Any]


def split_computed_biases(traced: fx.GraphModule) -> None:
    """Split a captured product whose bias is computed from parameters (scaled, masked) into a product and a sum."""
    for node in list(traced.graph.nodes):
        kind, names = _PRODUCTS.get(node.target, (nn.Module, ()))
        if not isinstance(node.target, OpOverload) or names[1:3] != ("weight", "bias"):
            continue
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if not isinstance(bias, fx.Node) or bias.op == "get_attr" or not _is_of_parameters(bias):
            continue
        node.args = (*node.args[:2], None, *node.args[3:])
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
        positions = 0 if kind is nn.Linear else node.meta["val"].dim() - 2
        with traced.graph.inserting_after(node):
            total = traced.graph.call_function(aten.add.Tensor, (node, bias))
        node.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
        total.meta.update(node.meta)
        if positions:
            with traced.graph.inserting_before(total):
                total.args = (node, traced.graph.call_function(aten.view.default, (bias, [-1, *[1] * positions])))


# --- recognition ------------------------------------------------------------------------------------------------------


def product_of(node: fx.Node, traced: fx.GraphModule) -> Product | None:
    """Return the product that a node computes; None if it computes none, or more than a layer can."""
    kind, names = _PRODUCTS.get(node.target, (nn.Module, ()))
    if node.op not in ("call_function", "call_method") or not names or len(node.args) > len(names):
        return None
    values: dict[str, Any] = dict(zip(names, node.args, strict=False))
    values |= {_OTHER_NAMES.get(name, name): value for name, value in node.kwargs.items()}
    turned = "right" in values
    given, weight = values.pop("input", None), values.pop("right" if turned else "weight", None)
    bias = values.pop("bias", None)
    if not isinstance(given, fx.Node) or not isinstance(weight, fx.Node) or not set(values) <= {*names}:
        return None
    if not _is_of_parameters(weight) or any(_holds_nodes(v) for v in values.values()):
        return None
    if _is_of_parameters(given) and kind is not nn.Embedding:  # the positions of an Embedding may be a buffer
        return None
    while turned or kind is nn.Linear:
        inner = _turned(weight, traced)
        if inner is None:
            break
        weight, turned = inner, not turned
    turns_others = turned and weight.op == "get_attr" and value_of(weight, traced).dim() != 2
    if turns_others or not (bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")):
        return None
    return Product(kind, given, weight, turned, bias, {name: _plain(value) for name, value in values.items()})


def with_bias(product: Product, node: fx.Node, traced: fx.GraphModule) -> tuple[Product, fx.Node]:
    """Use a parameter that is added to a matrix product as its bias; return the product and the node to replace."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if product.kind is not nn.Linear or product.bias is not None or user is None or user.target not in _ADDITIONS:
        return product, node
    others = [value for value in user.args if value is not node]
    if user.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].op != "get_attr":
        return product, node
    if value_of(others[0], traced).shape != (weight_shape(product, traced)[0],):
        return product, node
    return product._replace(bias=others[0]), user


def _is_of_parameters(node: fx.Node) -> bool:
    """Return whether a value depends on parameters or buffers, and on nothing else."""
    sources = node.all_input_nodes
    return node.op == "get_attr" or bool(sources and all(_is_of_parameters(source) for source in sources))


def _turned(node: fx.Node, traced: fx.GraphModule) -> fx.Node | None:
    """Return the parameter whose transpose a value is; None for other values."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is None or source.op != "get_attr" or value_of(source, traced).dim() != 2:
        return None
    name = str(node.args[1]) if node.target is getattr else str(getattr(node.target, "__name__", node.target))
    axes = node.args[1:]
    if len(axes) == 1 and isinstance(axes[0], tuple | list):
        axes = tuple(axes[0])
    swaps = name in _SWAPS and not node.kwargs and tuple(axes) in (_SWAPPED if "perm" not in name else ((1, 0),))
    return source if name in _TURNS or swaps else None


def _holds_nodes(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, tuple | list) and any(_holds_nodes(v) for v in value))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def value_of(node: fx.Node, traced: fx.GraphModule) -> Tensor:
    """Return the parameter or buffer that a node reads."""
    value: Tensor = operator.attrgetter(str(node.target))(traced)
    return value


def weight_shape(product: Product, traced: fx.GraphModule) -> tuple[int, ...]:
    """Return the shape of a weight in torch's layout."""
    if product.weight.op == "get_attr":
        shape = tuple(value_of(product.weight, traced).shape)
    else:
        original, computation = computation_of(product, traced)
        with torch.no_grad():
            return tuple(computation(value_of(original, traced)).shape)
    return shape[::-1] if product.turned else shape


def sources_of(node: fx.Node) -> list[fx.Node]:
    """Return a node and all nodes that it is computed from, in topological order."""
    found: dict[fx.Node, None] = {}

    def visit(part: fx.Node) -> None:
        for source in part.all_input_nodes:
            visit(source)
        found[part] = None

    visit(node)
    return list(found)


def computation_of(product: Product, traced: fx.GraphModule) -> tuple[fx.Node, fx.GraphModule]:
    """Return the largest parameter that a weight is computed from, and the graph that computes the weight."""
    needed = sources_of(product.weight)
    held = [node for node in needed if node.op == "get_attr"]
    values = {node: value_of(node, traced) for node in held}
    original = max(held, key=lambda node: (isinstance(values[node], nn.Parameter), values[node].numel()))
    graph = fx.Graph()
    copies = {original: graph.placeholder("original")}
    for node in needed:
        if node is not original:
            copies[node] = copies.get(node) or graph.node_copy(node, copies.__getitem__)
    result = copies[product.weight]
    graph.output(graph.call_function(torch.t, (result,)) if product.turned else result)
    return original, fx.GraphModule(traced, graph, class_name="WeightComputation")
