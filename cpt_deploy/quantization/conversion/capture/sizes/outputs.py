"""Replace `output_size=` of transposed convolutions by the equivalent output padding."""

from torch import fx, nn
from torch.nn.utils import parametrize

from cpt_deploy.quantization.conversion.capture.composites import like
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError
from cpt_deploy.quantization.graph.shapes import describe, propagate_shapes
from cpt_deploy.signature import Signature

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def fix_output_sizes(traced: fx.GraphModule, signature: Signature) -> None:
    """Propagate all shapes again, and set the output padding of transposed convolutions that are called with a size.

    Raises:
        NoIntegerFormError: If the calls of one layer ask for sizes that no single output padding yields.
    """
    propagate_shapes(traced, signature)
    paddings: dict[str, tuple[int, ...]] = {}
    for node in traced.graph.find_nodes(op="call_module"):
        target, module = str(node.target), traced.get_submodule(str(node.target))
        if parametrize.type_before_parametrizations(module) not in _TRANSPOSED:
            continue
        assert isinstance(module, _TRANSPOSED)
        told = len(node.args) > 1 or bool(node.kwargs)
        padding = _output_padding(node, module) if told else tuple(module.output_padding)
        if paddings.setdefault(target, padding) != padding:
            raise NoIntegerFormError(
                f"Expected one output size of each layer, but got several at {describe(node, traced)}",
                hint="use one layer for each size",
                reason=f"{describe(node, traced)} is called with several output sizes",
            )
        if told:
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
    for target, padding in paddings.items():
        fixed = like(traced.get_submodule(target))
        fixed.output_padding = padding  # type: ignore[assignment]
        traced.set_submodule(target, fixed)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _output_padding(node: fx.Node, layer: nn.ConvTranspose1d | nn.ConvTranspose2d) -> tuple[int, ...]:
    """Return the padding at the end of each axis that yields the recorded output size."""
    sizes, made = node.all_input_nodes[0].meta["shape"][2:], node.meta["shape"][2:]
    kernel = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return tuple(
        int(size) - ((int(given) - 1) * stride - 2 * padding + dilation * (positions - 1) + 1)
        for size, given, positions, stride, padding, dilation in zip(made, sizes, *kernel, strict=True)
    )
