"""Which operators of a captured graph run on codes: the layers, and BatchNorm and ReLU that fold into a convolution.

All else is computed in float, and so is what a Linear layer makes: in a transformer the products take the time, and
the residual stream keeps its precision.
"""

from typing import Any

from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.graph.capture.aten import aten
from cpt_deploy.quantization.graph.capture.functional_layers import lift_products
from cpt_deploy.quantization.graph.capture.tracing import describe
from cpt_deploy.quantization.graph.capture.training_behaviour import replace_by_module
from cpt_deploy.quantization.graph.naming import free_name
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, has_statistics
from cpt_deploy.quantization.modules.layers import CONVOLUTIONS

#: Products with weights that no layer of ours computes; they would be served in float.
_OTHER_PRODUCTS = frozenset(
    {
        "addmm", "mm", "addmv", "mv", "conv1d", "conv2d", "conv3d",
        "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "embedding", "bilinear",
        "lstm", "gru", "rnn_tanh", "rnn_relu", "convolution", "_convolution", "embedding_bag",
    }
)  # fmt: skip

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_CLAMPS: dict[Any, Any] = {
    aten.relu.default: lambda node: nn.ReLU(),
    aten.relu6.default: lambda node: nn.ReLU6(),
    aten.hardtanh.default: lambda node: nn.Hardtanh(*node.args[1:]),
}


def lift(traced: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Turn what runs on codes into modules of the vocabulary, and mark all else as computed in float.

    Args:
        traced: A captured graph.
        model: The model that it was captured from, with its modules.

    Returns:
        The graph on a module that holds what it uses, and nothing else.

    Raises:
        ConversionError: If products with weights would stay in float.
    """
    layers = lift_products(traced)
    on_codes: set[fx.Node] = set(layers)
    for layer in layers:
        if isinstance(_module(layer, traced), CONVOLUTIONS):
            on_codes.update(_folding(traced, layer))
    for node in traced.graph.nodes:
        if _is_other_product(node):
            raise ConversionError(
                f"Expected weights in Conv1d/2d, ConvTranspose1d/2d, Linear and Embedding layers, but got "
                f"{describe(node, traced)}"
            )
    for node in traced.graph.nodes:
        if node not in on_codes and node.op in ("call_module", "call_function"):
            node.meta[IS_FLOAT] = True
    traced.graph.eliminate_dead_code()
    lean = fx.GraphModule(traced, traced.graph, class_name=type(model).__name__)
    lean.train(traced.training)
    return lean


def _folding(traced: fx.GraphModule, layer: fx.Node) -> list[fx.Node]:
    """Return the BatchNorm and the ReLU that follow a convolution alone; the ReLU becomes a module."""
    found: list[fx.Node] = []
    user = _only_user(layer)
    if user is not None and user.op == "call_module" and _folds(_module(user, traced)):
        found.append(user)
        user = _only_user(user)
    if user is not None and user.target in _CLAMPS and user.args[1:2] in ((), (0,), (0.0,)):
        module = _CLAMPS[user.target](user)
        found.append(replace_by_module(traced, user, free_name(traced, f"{user.name}_module"), module, user.args[:1]))
    return found


def _folds(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and has_statistics(module)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(node: fx.Node, traced: fx.GraphModule) -> nn.Module:
    return traced.get_submodule(str(node.target))


def _is_other_product(node: fx.Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
    return name in _OTHER_PRODUCTS and any(_is_parameter(source) for source in node.all_input_nodes)


def _is_parameter(node: fx.Node) -> bool:
    """Return whether a value is a parameter or only moved from one."""
    return node.op == "get_attr" or bool(node.all_input_nodes and all(_is_parameter(n) for n in node.all_input_nodes))
