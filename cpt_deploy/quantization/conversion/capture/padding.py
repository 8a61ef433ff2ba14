"""Replace the padding of modules, functions and convolutions by an operation that moves quantized values."""

import math
from typing import Any

from torch import fx, nn
from torch.nn import functional

from cpt_deploy.quantization.conversion.capture.composites import like
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError
from cpt_deploy.quantization.graph.shapes import describe
from cpt_deploy.quantization.modules.channelwise_constant import ChannelwiseConstant
from cpt_deploy.quantization.modules.padding import Padding

_MODES: dict[type[nn.Module], str] = {
    nn.ZeroPad1d: "constant",
    nn.ZeroPad2d: "constant",
    nn.ConstantPad1d: "constant",
    nn.ConstantPad2d: "constant",
    nn.ReflectionPad1d: "reflect",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad1d: "replicate",
    nn.ReplicationPad2d: "replicate",
    nn.CircularPad1d: "circular",
    nn.CircularPad2d: "circular",
}


def lift_paddings(traced: fx.GraphModule) -> None:
    """Replace all padding of a network by `Padding`; a value other than 0 becomes 0 between two shifts.

    Raises:
        NoIntegerFormError: If a width or value is computed, or the value is infinite.
    """
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode != "zeros":
            _before_convolution(traced, node, module)
        elif module is not None and type(module) in _MODES:
            _replace(traced, node, module.padding, _MODES[type(module)], getattr(module, "value", 0))
        elif node.target is functional.pad:
            names = ("input", "pad", "mode", "value")
            values = {"mode": "constant", "value": 0, **dict(zip(names, node.args, strict=False)), **node.kwargs}
            _replace(traced, node, values["pad"], values["mode"], values["value"] or 0)


def _replace(traced: fx.GraphModule, node: fx.Node, widths: Any, mode: Any, value: Any) -> None:
    numbers = isinstance(widths, tuple | list) and all(isinstance(width, int) for width in widths)
    if not numbers or not isinstance(mode, str) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NoIntegerFormError(
            f"Expected padding by known widths and a finite value, but got {describe(node, traced)}",
            reason=f"{describe(node, traced)} pads by widths or a value that are not known",
        )
    parts: list[nn.Module] = [Padding(widths, mode)]
    if value != 0:
        parts = [ChannelwiseConstant(1.0, -float(value)), *parts, ChannelwiseConstant(1.0, float(value))]
    source = node.all_input_nodes[0]
    for i, part in enumerate(parts):
        source = _insert(traced, node, source, f"{node.name}_padding{i or ''}", part)
    node.replace_all_uses_with(source)
    traced.graph.erase_node(node)


def _before_convolution(traced: fx.GraphModule, node: fx.Node, convolution: nn.Conv1d | nn.Conv2d) -> None:
    """Insert a convolution's padding before each of its calls, and replace it by a convolution without padding."""
    plain: Any = like(convolution)
    plain.padding, plain.padding_mode = (0,) * len(convolution.kernel_size), "zeros"
    traced.set_submodule(str(node.target), plain)
    for call in traced.graph.find_nodes(op="call_module", target=node.target):
        padding = Padding(convolution._reversed_padding_repeated_twice, convolution.padding_mode)
        source = call.all_input_nodes[0]
        call.replace_input_with(source, _insert(traced, call, source, f"{call.name}_padding", padding))


def _insert(traced: fx.GraphModule, node: fx.Node, source: fx.Node, name: str, module: nn.Module) -> fx.Node:
    while hasattr(traced, name):
        name += "_"
    traced.add_module(name, module)
    with traced.graph.inserting_before(node):
        inserted = traced.graph.call_module(name, (source,))
    inserted.meta.update(node.meta)
    return inserted
