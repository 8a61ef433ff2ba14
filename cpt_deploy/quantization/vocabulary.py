"""The operations that have an integer form, and how a node of a traced graph is recognised as one of them."""

import operator
from enum import Enum

import torch
from torch import fx, nn

from cpt_deploy.quantization.edges import EdgeQuantizer, LayerInput
from cpt_deploy.quantization.layers import QuantizedLayer, is_quantizable
from cpt_deploy.quantization.padding import Padding
from cpt_deploy.quantization.synchronized_norm import SynchronizedBatchNorm1d, SynchronizedBatchNorm2d
from cpt_deploy.quantization.tracing import (
    ChannelwiseConstant,
    NoIntegerFormError,
    describe,
    is_tensor,
    is_torchvision_depth,
    shape_of,
)


class Kind(Enum):
    """What a node does, as far as integers are concerned."""

    LAYER = "a layer with weights"
    NORM = "batch normalisation"
    CLAMP = "a ReLU or ReLU6: saturation, if it follows what it clamps"
    TABLE = "a function of one code: 256 entries"
    CONSTANT = "multiplication by and addition of numbers"
    ADD = "sum of two tensors"
    MULTIPLY = "product of two tensors"
    CONCATENATE = "concatenation of channels"
    AVERAGE = "average pooling"
    GLOBAL_AVERAGE = "mean over all positions"
    KEEP = "codes are moved, selected or left alone: same scale before and after"
    EDGE = "a quantizer"
    FLOAT = "computed in float: between quantizers, or where no integer form would gain anything"


_MODULE_KINDS: dict[type[nn.Module], Kind] = {
    nn.BatchNorm1d: Kind.NORM,
    nn.BatchNorm2d: Kind.NORM,
    SynchronizedBatchNorm1d: Kind.NORM,
    SynchronizedBatchNorm2d: Kind.NORM,
    nn.ReLU: Kind.CLAMP,
    nn.ReLU6: Kind.CLAMP,
    nn.Sigmoid: Kind.TABLE,
    nn.Hardsigmoid: Kind.TABLE,
    nn.Tanh: Kind.TABLE,
    nn.LeakyReLU: Kind.TABLE,
    nn.ELU: Kind.TABLE,
    nn.Softplus: Kind.TABLE,
    ChannelwiseConstant: Kind.CONSTANT,
    nn.AvgPool2d: Kind.AVERAGE,
    nn.MaxPool1d: Kind.KEEP,
    nn.MaxPool2d: Kind.KEEP,
    nn.Dropout: Kind.KEEP,
    nn.Dropout1d: Kind.KEEP,
    nn.Dropout2d: Kind.KEEP,
    nn.Flatten: Kind.KEEP,
    EdgeQuantizer: Kind.EDGE,
    LayerInput: Kind.EDGE,
}

_SPLITS = ("chunk", "split", torch.chunk, torch.split)

_TARGET_KINDS: dict[object, Kind] = {
    operator.add: Kind.ADD,
    torch.add: Kind.ADD,
    "add": Kind.ADD,
    operator.mul: Kind.MULTIPLY,
    torch.mul: Kind.MULTIPLY,
    "mul": Kind.MULTIPLY,
    torch.cat: Kind.CONCATENATE,
    torch.concat: Kind.CONCATENATE,
    torch.flatten: Kind.KEEP,
    "flatten": Kind.KEEP,
    "contiguous": Kind.KEEP,
    "clone": Kind.KEEP,
    "view": Kind.KEEP,
    "reshape": Kind.KEEP,
    torch.reshape: Kind.KEEP,
    "transpose": Kind.KEEP,
    torch.transpose: Kind.KEEP,
    "permute": Kind.KEEP,
    torch.permute: Kind.KEEP,
    "squeeze": Kind.KEEP,
    torch.squeeze: Kind.KEEP,
    "unsqueeze": Kind.KEEP,
    torch.unsqueeze: Kind.KEEP,
    "chunk": Kind.KEEP,
    torch.chunk: Kind.KEEP,
    "split": Kind.KEEP,
    torch.split: Kind.KEEP,
}


#: Key of `node.meta` that marks an operation which is computed in float though its kind has an integer form.
IS_FLOAT = "is_float"


def classify(node: fx.Node, traced: fx.GraphModule) -> Kind:
    """Return what a tensor-valued node does.

    Raises:
        ConversionError: If the operation has no integer form; names the operation and the module it stands in.
    """
    kind = _kind(node, traced)
    if kind is None:
        raise NoIntegerFormError(
            f"Expected operations that have an integer form, but got {describe(node, traced)}",
            hint="supported: Conv1d/2d, ConvTranspose1d/2d, Linear, BatchNorm, ReLU-like and elementwise "
            "activations, pooling, padding, +, *, cat, reshape, transpose, chunk, Dropout",
        )
    return kind


def computes(node: fx.Node) -> bool:
    """Return whether a node works on tensors: it yields one, or splits one (the rest is arithmetic on sizes)."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return False
    return is_tensor(node) or node.target in _SPLITS


def _kind(node: fx.Node, traced: fx.GraphModule) -> Kind | None:
    if node.meta.get(IS_FLOAT) or isinstance(node.target, torch._ops.OpOverload):
        return Kind.FLOAT
    if node.op == "call_module":
        return _module_kind(node, traced.get_submodule(str(node.target)))
    if node.target in _TARGET_KINDS:
        kind = _TARGET_KINDS[node.target]
        scaled_sum = kind is Kind.ADD and node.kwargs.get("alpha", 1) != 1
        return None if scaled_sum else kind
    if node.target is operator.getitem:
        return Kind.KEEP if node.all_input_nodes[0].target in _SPLITS else None
    if node.target in ("mean", torch.mean):
        return Kind.GLOBAL_AVERAGE if _averages_all_positions(node) else None
    return None


def _module_kind(node: fx.Node, module: nn.Module) -> Kind | None:
    if isinstance(module, QuantizedLayer) or is_quantizable(module):
        return Kind.LAYER
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return Kind.CLAMP if module.min_val == 0 else Kind.TABLE
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return _adaptive_kind(shape_of(node.all_input_nodes[0])[-2:], shape_of(node)[-2:])
    if isinstance(module, Padding):  # of the batch there is none
        return Kind.KEEP if len(module.widths) // 2 < len(node.meta["shape"]) else None
    return Kind.KEEP if is_torchvision_depth(module) else _MODULE_KINDS.get(type(module))


def _adaptive_kind(before: tuple[int, ...], after: tuple[int, ...]) -> Kind | None:
    if after == (1, 1):
        return Kind.GLOBAL_AVERAGE
    if before == after:
        return Kind.KEEP
    return Kind.AVERAGE if all(b % a == 0 for b, a in zip(before, after, strict=True)) else None


def _averages_all_positions(node: fx.Node) -> bool:
    shape = node.all_input_nodes[0].meta["shape"]
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if len(shape) != 4 or not isinstance(axes, tuple | list):
        return False
    return sorted(int(axis) % 4 for axis in axes) == [2, 3]
