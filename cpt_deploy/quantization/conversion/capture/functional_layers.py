"""Replace products with bare or computed parameters, such as `F.conv2d(x, self.weight)` and `x @ self.w`, by layers.

Each becomes a torch layer that holds the parameter. A weight that is computed from parameters alone (standardised,
masked, transposed) is computed by a parametrization of that layer, so that it remains trainable. Where several products
read one parameter, their layers share it.
"""

import operator
from collections.abc import Set
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from cpt_deploy.quantization.conversion.capture.products import (
    Product,
    computation_of,
    product_of,
    sources_of,
    split_computed_biases,
    value_of,
    weight_shape,
    with_bias,
)
from cpt_deploy.quantization.conversion.chosen_layers import EXCLUDED


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
    split_computed_biases(traced)
    for node in list(traced.graph.nodes):
        product = None if node.meta.get(EXCLUDED) else product_of(node, traced)
        if product is None:
            continue
        product, last = with_bias(product, node, traced)
        parts = [*([] if product.bias is None else [product.bias]), *sources_of(product.weight)]
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


# --- layers -----------------------------------------------------------------------------------------------------------


def _calling(node: fx.Node, kind: type[nn.Module]) -> str | None:
    """Return the path of the layer that computes a captured product; None if no layer of its kind does."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module = stack[-1] if stack else ("", "")
    name = module if isinstance(module, str) else f"{module.__module__}.{module.__qualname__}"
    return str(path) if name == f"{kind.__module__}.{kind.__qualname__}" else None


def _place(traced: fx.GraphModule, product: Product, own: Set[str], caller: str | None) -> str:
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
        original, computation = computation_of(product, traced)
    shares = computation is None and caller is not None and str(original.target) != f"{caller}.weight"
    path = caller if shares and caller else _path(traced, product, original, own)
    layer: Any = _layer(product, weight_shape(product, traced))
    layer.weight = _parameter(value_of(original, traced))
    if product.bias is not None:
        layer.bias = _parameter(value_of(product.bias, traced))
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


def _layer(product: Product, shape: tuple[int, ...]) -> nn.Module:
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


def _path(traced: fx.GraphModule, product: Product, weight: fx.Node, own: Set[str]) -> str:
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
