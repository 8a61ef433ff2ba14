"""Replace products with bare or computed parameters, such as `F.conv2d(x, self.weight)` and `x @ self.w`, by layers.

Each becomes a torch layer that holds the parameter. A weight that is computed from parameters alone (standardised,
masked, transposed) is computed by a parametrization of that layer, so that it remains trainable. Where several products
read one parameter, their layers share it.
"""

import operator
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn import functional
from torch.nn.utils import parametrize

from cpt_deploy.quantization.graph.capture.aten import aten
from cpt_deploy.quantization.graph.chosen_layers import EXCLUDED

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


class _Product(NamedTuple):
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


class _ComputedWeight(nn.Module):
    """Computes a weight from one parameter, its argument, and others, which it holds."""

    def __init__(self, computation: fx.GraphModule) -> None:
        super().__init__()
        self.computation = computation

    def forward(self, original: Tensor) -> Tensor:
        """Return the weight in torch's layout."""
        result: Tensor = self.computation(original)
        return result


def lift_products(traced: fx.GraphModule) -> list[fx.Node]:
    """Replace all products of tensors with parameters by layers, and return the nodes that call them.

    A product whose weight, bias or geometry depends on the input is left unchanged.
    """
    calls: list[fx.Node] = []
    layers: dict[tuple[Any, ...], str] = {}
    _expose_parametrizations(traced)
    _split_computed_biases(traced)
    for node in list(traced.graph.nodes):
        product = None if node.meta.get(EXCLUDED) else _product(node, traced)
        if product is None:
            continue
        product, last = _with_bias(product, node, traced)
        parts = [*([] if product.bias is None else [product.bias]), *_sources(product.weight)]
        key = (product.kind, product.weight, product.turned, product.bias, repr(product.options))
        if key not in layers:
            owned = all(user in (*parts, node, last) for part in parts for user in part.users)
            own = {str(part.target) for part in parts} if owned else set()
            caller = _calling(node, product.kind)
            layers[key] = _place(traced, product, own, caller if caller not in layers.values() else None)
        with traced.graph.inserting_after(last):
            call = traced.graph.call_module(layers[key], (product.input,))
        call.meta.update(last.meta)
        last.replace_all_uses_with(call)
        for done in dict.fromkeys((last, node, *reversed(parts))):
            if not done.users:
                traced.graph.erase_node(done)
        calls.append(call)
    traced.graph.eliminate_dead_code()
    return calls


def _expose_parametrizations(traced: fx.GraphModule) -> None:
    """Expand `layer.parametrizations.weight()` to calls of the parametrizations on the parameters."""
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, parametrize.ParametrizationList) or node.args:
            continue
        names = ["original"] if module.is_tensor else [f"original{i}" for i in range(module.ntensors)]
        with traced.graph.inserting_before(node):
            values = tuple(traced.graph.get_attr(f"{node.target}.{name}") for name in names)
            for i in range(len(module)):
                values = (traced.graph.call_module(f"{node.target}.{i}", values),)
        node.replace_all_uses_with(values[0])
        traced.graph.erase_node(node)


def _split_computed_biases(traced: fx.GraphModule) -> None:
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


def _product(node: fx.Node, traced: fx.GraphModule) -> _Product | None:
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
    turns_others = turned and weight.op == "get_attr" and _value(weight, traced).dim() != 2
    if turns_others or not (bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")):
        return None
    return _Product(kind, given, weight, turned, bias, {name: _plain(value) for name, value in values.items()})


def _with_bias(product: _Product, node: fx.Node, traced: fx.GraphModule) -> tuple[_Product, fx.Node]:
    """Use a parameter that is added to a matrix product as its bias; return the product and the node to replace."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if product.kind is not nn.Linear or product.bias is not None or user is None or user.target not in _ADDITIONS:
        return product, node
    others = [value for value in user.args if value is not node]
    if user.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].op != "get_attr":
        return product, node
    if _value(others[0], traced).shape != (_shape(product, traced)[0],):
        return product, node
    return product._replace(bias=others[0]), user


def _is_of_parameters(node: fx.Node) -> bool:
    """Return whether a value depends on parameters or buffers, and on nothing else."""
    sources = node.all_input_nodes
    return node.op == "get_attr" or bool(sources and all(_is_of_parameters(source) for source in sources))


def _turned(node: fx.Node, traced: fx.GraphModule) -> fx.Node | None:
    """Return the parameter whose transpose a value is; None for other values."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is None or source.op != "get_attr" or _value(source, traced).dim() != 2:
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


def _value(node: fx.Node, traced: fx.GraphModule) -> Tensor:
    value: Tensor = operator.attrgetter(str(node.target))(traced)
    return value


# --- layers -----------------------------------------------------------------------------------------------------------


def _shape(product: _Product, traced: fx.GraphModule) -> tuple[int, ...]:
    """Return the shape of a weight in torch's layout."""
    if product.weight.op == "get_attr":
        shape = tuple(_value(product.weight, traced).shape)
    else:
        original, computation = _computation(product, traced)
        with torch.no_grad():
            return tuple(computation(_value(original, traced)).shape)
    return shape[::-1] if product.turned else shape


def _calling(node: fx.Node, kind: type[nn.Module]) -> str | None:
    """Return the path of the layer that computes a captured product; None if no layer of its kind does."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module = stack[-1] if stack else ("", "")
    name = module if isinstance(module, str) else f"{module.__module__}.{module.__qualname__}"
    return str(path) if name == f"{kind.__module__}.{kind.__qualname__}" else None


def _place(traced: fx.GraphModule, product: _Product, own: Set[str], caller: str | None) -> str:
    """Create the layer of a product in the graph's module, and return its path.

    Args:
        traced: The graph.
        product: The product.
        own: Names of parameters that nothing else reads: the module that holds them may be replaced.
        caller: Path of the layer that computes the product, which may share its weight with one of another path.
    """
    weight = product.weight
    if weight.op == "get_attr" and not product.turned:
        original, computation = weight, None
    else:
        original, computation = _computation(product, traced)
    shares = computation is None and caller is not None and str(original.target) != f"{caller}.weight"
    path = caller if shares and caller else _path(traced, product, original, own)
    layer: Any = _layer(product, _shape(product, traced))
    layer.weight = _parameter(_value(original, traced))
    if product.bias is not None:
        layer.bias = _parameter(_value(product.bias, traced))
    if computation is not None:
        parametrize.register_parametrization(layer, "weight", _ComputedWeight(computation), unsafe=True)
    layer.train(traced.training)
    if path in dict(traced.named_modules()):
        traced.set_submodule(path, layer)
    else:
        traced.add_submodule(path, layer)
    return path


def _parameter(value: Tensor) -> nn.Parameter:
    """Return a parameter unchanged, and a buffer as a parameter that is not trained."""
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)


def _layer(product: _Product, shape: tuple[int, ...]) -> nn.Module:
    options, kind = dict(product.options), product.kind
    if kind is nn.Embedding:
        padding = options.get("padding_idx")
        return nn.Embedding(shape[0], shape[1], padding if padding != -1 else None, device="meta")
    options |= {"bias": product.bias is not None, "device": "meta"}
    if kind is nn.Linear:
        return nn.Linear(shape[1], shape[0], **options)
    groups = options.get("groups", 1)
    channels = (shape[0], shape[1] * groups) if "Transpose" in kind.__name__ else (shape[1] * groups, shape[0])
    return kind(*channels, shape[2:], **options)


def _path(traced: fx.GraphModule, product: _Product, weight: fx.Node, own: Set[str]) -> str:
    """Return the path of a layer: that of the module that holds the weight, if it has no other use.

    Otherwise it is named by its parameter: `attention.in_proj` for `attention.in_proj_weight`.
    """
    owner, _, name = str(weight.target).rpartition(".")
    owner = owner.removesuffix(".parametrizations.weight")
    plain = name == "weight" or name.startswith("original")
    if owner and plain:
        read = {str(node.target) for node in traced.graph.nodes if node.op in ("get_attr", "call_module")}
        inside = {target for target in read if f"{target}.".startswith(f"{owner}.")}
        if inside <= own:
            return owner
    short = product.kind.__name__.lower()
    path = f"{owner}_{short}" if plain else f"{owner}.{name.removesuffix('_weight')}"
    path = path.strip("._")
    if _has(traced, path):
        path = f"{path}_{short}"
    while _has(traced, path):
        path += "_"
    return path


def _has(traced: fx.GraphModule, path: str) -> bool:
    try:
        operator.attrgetter(path)(traced)
    except AttributeError:
        return False
    return True


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return a node and all nodes that it is computed from, in topological order."""
    found: dict[fx.Node, None] = {}

    def visit(part: fx.Node) -> None:
        for source in part.all_input_nodes:
            visit(source)
        found[part] = None

    visit(node)
    return list(found)


def _computation(product: _Product, traced: fx.GraphModule) -> tuple[fx.Node, fx.GraphModule]:
    """Return the largest parameter that a weight is computed from, and the graph that computes the weight."""
    needed = _sources(product.weight)
    held = [node for node in needed if node.op == "get_attr"]
    values = {node: _value(node, traced) for node in held}
    original = max(held, key=lambda node: (isinstance(values[node], nn.Parameter), values[node].numel()))
    graph = fx.Graph()
    copies = {original: graph.placeholder("original")}
    for node in needed:
        if node is not original:
            copies[node] = copies.get(node) or graph.node_copy(node, copies.__getitem__)
    result = copies[product.weight]
    graph.output(graph.call_function(torch.t, (result,)) if product.turned else result)
    return original, fx.GraphModule(traced, graph, class_name="WeightComputation")
