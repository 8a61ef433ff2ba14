"""Select the operators of a captured graph that run on integers: layers, and the operators that convolutions absorb.

All other operators are computed in float, and so is the output of a Linear layer: in a transformer the matrix products
take the time, and the residual stream keeps its precision.
"""

from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.conversion.capture.functional_layers import lift_products
from cpt_deploy.quantization.conversion.chosen_layers import EXCLUDED
from cpt_deploy.quantization.graph.fusion import fused_operation
from cpt_deploy.quantization.graph.naming import free_name, replace_by_module
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, Kind, kind_of, module_of
from cpt_deploy.quantization.graph.shapes import describe
from cpt_deploy.quantization.kernels import Clamp
from cpt_deploy.quantization.modules.layers import CONVOLUTIONS

#: Products with weights that no quantized layer computes; they would be served in float.
_OTHER_PRODUCTS = frozenset(
    {
        "addmm", "mm", "addmv", "mv", "conv1d", "conv2d", "conv3d",
        "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "embedding", "bilinear",
        "lstm", "gru", "rnn_tanh", "rnn_relu", "convolution", "_convolution", "embedding_bag",
    }
)  # fmt: skip


def lift(traced: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Replace the operators that run on integers by modules of the vocabulary, and mark the others as float.

    Args:
        traced: A captured graph.
        model: The model that it was captured from, with its modules.

    Returns:
        The graph on a module that holds only the modules and parameters that it uses.

    Raises:
        ConversionError: If products with weights would stay in float.
    """
    layers = lift_products(traced)
    on_codes: set[fx.Node] = set(layers)
    for layer in layers:
        if isinstance(module_of(layer, traced), CONVOLUTIONS):
            on_codes.update(_absorbed(traced, layer))
    for node in traced.graph.nodes:
        if _is_other_product(node) and not node.meta.get(EXCLUDED):
            raise ConversionError(
                f"Expected weights in Conv1d/2d, ConvTranspose1d/2d, Linear and Embedding layers, but got "
                f"{describe(node, traced)}"
            )
    for node in traced.graph.nodes:
        if (
            node not in on_codes
            and kind_of(node, traced) is not Kind.RECURRENT
            and node.op in ("call_module", "call_function")
        ):
            node.meta[IS_FLOAT] = True
    traced.graph.eliminate_dead_code()
    lean = fx.GraphModule(traced, traced.graph, class_name=type(model).__name__)
    lean.train(traced.training)
    return lean


def _absorbed(traced: fx.GraphModule, layer: fx.Node) -> list[fx.Node]:
    """Return the BatchNorm and the clamp that fold into a convolution; the clamp becomes a module."""
    operation = fused_operation(layer, traced)
    *nodes, end = operation.nodes
    if end.op == "call_function":
        module = nn.ReLU() if operation.clamp == Clamp(0.0) else nn.Hardtanh(*operation.clamp)
        end = replace_by_module(traced, end, free_name(traced, f"{end.name}_module"), module, end.args[:1])
    return [*nodes, end]


def _is_other_product(node: fx.Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
    return name in _OTHER_PRODUCTS and any(_is_parameter(source) for source in node.all_input_nodes)


def _is_parameter(node: fx.Node) -> bool:
    """Return whether a value is a parameter, or one that was only reshaped or moved."""
    return node.op == "get_attr" or bool(node.all_input_nodes and all(_is_parameter(n) for n in node.all_input_nodes))
