"""Classify the nodes of a traced graph by the operations that have an integer form."""

import operator
from enum import Enum

import torch
from torch import fx, nn

from cpt_deploy.quantization.graph.no_integer_form import no_integer_form
from cpt_deploy.quantization.graph.shapes import has_free_positions, is_tensor, shape_of, sizes_of
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.channelwise_constant import ChannelwiseConstant
from cpt_deploy.quantization.modules.layers import QuantizedLayer, is_quantizable
from cpt_deploy.quantization.modules.padding import Padding
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent, RecurrentLayer
from cpt_deploy.quantization.modules.stochastic_depth import is_stochastic_depth
from cpt_deploy.quantization.modules.synchronized_norm import SynchronizedBatchNorm1d, SynchronizedBatchNorm2d


class Kind(Enum):
    """Kind of a node's operation, as integer execution distinguishes them."""

    LAYER = "a layer with weights"
    NORM = "batch normalisation"
    TABLE = "a function of one quantized value: 256 entries"
    CONSTANT = "multiplication by and addition of numbers"
    ADD = "sum of two tensors"
    MULTIPLY = "product of two tensors"
    CONCATENATE = "concatenation of channels"
    AVERAGE = "average pooling"
    GLOBAL_AVERAGE = "mean over all positions"
    KEEP = "quantized values are moved, selected or left alone: same scale before and after"
    QUANTIZER = "a quantizer"
    RECURRENT = "a layer of an LSTM or GRU, in one direction"
    FLOAT = "computed in float: between quantizers, or where no integer form would gain anything"


_MODULE_KINDS: dict[type[nn.Module], Kind] = {
    nn.BatchNorm1d: Kind.NORM,
    nn.BatchNorm2d: Kind.NORM,
    SynchronizedBatchNorm1d: Kind.NORM,
    SynchronizedBatchNorm2d: Kind.NORM,
    nn.ReLU: Kind.TABLE,
    nn.ReLU6: Kind.TABLE,
    nn.Hardtanh: Kind.TABLE,
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
    ActivationQuantizer: Kind.QUANTIZER,
    Requantize: Kind.QUANTIZER,
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


#: Kinds whose plain form has no keyword arguments once `trace` has made them positional; scaled sums, `out=` and dtypes
#: keep some.
_PLAIN = (Kind.ADD, Kind.MULTIPLY, Kind.CONCATENATE)

#: From this threshold on, Softplus is linear in float32 anyway, so it equals ONNX's Softplus, which has no threshold.
_LEAST_THRESHOLD = 20


#: Key of `node.meta` that marks an operation that is computed in float though its kind has an integer form.
IS_FLOAT = "is_float"


def classify(node: fx.Node, traced: fx.GraphModule) -> Kind:
    """Return the kind of a tensor-valued node.

    Raises:
        ConversionError: If the operation has no integer form; names the operation and its module.
    """
    kind = kind_of(node, traced)
    if kind is None:
        raise no_integer_form(node, traced)
    return kind


def module_of(node: fx.Node | None, traced: fx.GraphModule) -> nn.Module | None:
    """Return the module that a node calls, or None if it calls none."""
    return traced.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def computes(node: fx.Node) -> bool:
    """Return whether a node yields or splits a tensor (the rest is arithmetic on sizes)."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return False
    return is_tensor(node) or node.target in _SPLITS


def _reads_two_tensors(node: fx.Node) -> bool:
    """Return whether both operands are tensors: neither a mask nor a number that `join_constants` left."""
    return len(node.args) == 2 and all(isinstance(operand, fx.Node) and is_tensor(operand) for operand in node.args)


def kind_of(node: fx.Node, traced: fx.GraphModule) -> Kind | None:
    """Return the kind of a node; None if it does not compute on tensors, or has no integer form."""
    if isinstance(module_of(node, traced), RecurrentLayer | QuantizedRecurrent):
        return Kind.RECURRENT
    if not computes(node):
        return None
    if node.meta.get(IS_FLOAT) or isinstance(node.target, torch._ops.OpOverload):
        return Kind.FLOAT
    module = module_of(node, traced)
    return _function_kind(node) if module is None else _module_kind(node, module)


def _function_kind(node: fx.Node) -> Kind | None:
    if node.target in _TARGET_KINDS:
        kind = _TARGET_KINDS[node.target]
        unknown = kind is Kind.CONCATENATE and isinstance(node.args[0] if node.args else None, fx.Node | None)
        alone = kind in (Kind.ADD, Kind.MULTIPLY) and not _reads_two_tensors(node)
        return None if unknown or alone or (kind in _PLAIN and node.kwargs) else kind
    if node.target is operator.getitem:
        part = node.all_input_nodes[0].target in _SPLITS and isinstance(node.args[1], int)
        return Kind.KEEP if part else None
    if node.target in ("mean", torch.mean):
        return Kind.GLOBAL_AVERAGE if not node.kwargs and _averages_all_positions(node) else None
    return None


def _module_kind(node: fx.Node, module: nn.Module) -> Kind | None:
    if isinstance(module, QuantizedLayer) or is_quantizable(module):
        return Kind.LAYER
    if _is_float_form(node, module):
        return None
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return _adaptive_kind(sizes_of(node.all_input_nodes[0])[-2:], sizes_of(node)[-2:])
    if isinstance(module, Padding):  # the batch dimension cannot be padded
        return Kind.KEEP if len(module.widths) // 2 < len(node.meta["shape"]) else None
    return Kind.KEEP if is_stochastic_depth(module) else _MODULE_KINDS.get(type(module))


def _is_float_form(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a module whose kind has an integer form has settings that have none."""
    match module:
        case nn.modules.batchnorm._BatchNorm():
            return not has_statistics(module)
        case nn.Softplus():
            return module.beta != 1 or module.threshold < _LEAST_THRESHOLD  # ONNX's Softplus has no parameters
        case nn.AvgPool2d():
            source = node.all_input_nodes[0]
            if module.ceil_mode and has_free_positions(source):
                return True
            return not has_one_divisor(module, shape_of(source))
        case nn.MaxPool1d() | nn.MaxPool2d():
            return bool(module.return_indices)
    return False


def has_statistics(norm: nn.Module | None) -> bool:
    """Return whether a BatchNorm normalises by running averages in evaluation, not by the batch's own statistics."""
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None


def has_one_divisor(pool: nn.AvgPool2d, shape: tuple[int, ...]) -> bool:
    """Return whether all windows of an average pooling have the same divisor, on inputs of a shape (C, H, W)."""
    if pool.divisor_override:
        return not pool.ceil_mode or not _cuts_windows(pool, shape)
    return not (any(pair(pool.padding)) and not pool.count_include_pad) and not (
        pool.ceil_mode and _cuts_windows(pool, shape)
    )


def _cuts_windows(pool: nn.AvgPool2d, shape: tuple[int, ...]) -> bool:
    kernel, strides, padding = pair(pool.kernel_size), pair(pool.stride), pair(pool.padding)
    return any((size + 2 * p - k) % s for size, k, s, p in zip(shape[-2:], kernel, strides, padding, strict=True))


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return a two-dimensional size that is given as one number or two."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _adaptive_kind(before: tuple[int | None, ...], after: tuple[int | None, ...]) -> Kind | None:
    if after == (1, 1):
        return Kind.GLOBAL_AVERAGE
    sizes = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if len(sizes) < len(before):
        return None  # the sizes of the windows vary
    if before == after:
        return Kind.KEEP
    return Kind.AVERAGE if all(b % a == 0 for b, a in sizes) else None


def _averages_all_positions(node: fx.Node) -> bool:
    shape = node.all_input_nodes[0].meta["shape"]
    axes = node.args[1] if len(node.args) > 1 else None
    if len(shape) != 4 or not isinstance(axes, tuple | list):
        return False
    return sorted(int(axis) % 4 for axis in axes) == [2, 3]
