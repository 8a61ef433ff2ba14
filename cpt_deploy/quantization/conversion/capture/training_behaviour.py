"""Keep modules that differ between training and evaluation as modules in a captured graph.

`torch.export` would record only one of the two behaviours. So modules that have both are marked while a network is
captured, and restored in the graph: BatchNorm, InstanceNorm with running averages, stochastic depth.
"""

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from cpt_deploy.quantization.conversion.capture.aten import aten, is_mutating
from cpt_deploy.quantization.graph.naming import free_name, replace_by_module
from cpt_deploy.quantization.modules.attention import ScaledDotProductAttention
from cpt_deploy.quantization.modules.stochastic_depth import is_stochastic_depth

#: Last parts of the names of the tensors that training overwrites.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_DROPOUTS: dict[Any, type[nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
}


@torch.library.custom_op("cpt_deploy::mark", mutates_args=())
def _mark(x: Tensor, name: str) -> Tensor:
    """Represent the module of that name in the graph; its result has the shape of its input."""
    return x.clone()


@_mark.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


class Mark(nn.Module):
    """Replaces a module during capture, with access to its parameters, buffers and attributes."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self._mark_of = name
        self._parameters, self._buffers = module._parameters, module._buffers
        self.__dict__["_marked"] = module  # not a submodule, so that names do not change

    @property
    def marked(self) -> nn.Module:
        """The module that this one replaces."""
        module: nn.Module = self.__dict__["_marked"]
        return module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_marked"], name)

    def forward(self, x: Tensor) -> Any:
        """Represent the module in the graph."""
        result: Tensor = torch.ops.cpt_deploy.mark(x, self._mark_of)
        return result


def is_normalisation(module: nn.Module | None) -> bool:
    """Return whether a module is a BatchNorm as torch computes it, or an InstanceNorm with running averages."""
    forward = None if module is None else type(module).forward
    if isinstance(module, _InstanceNorm):
        return forward is _InstanceNorm.forward and module.running_mean is not None
    return isinstance(module, _BatchNorm) and forward is _BatchNorm.forward


def keeps_statistics(module: nn.Module) -> TypeGuard[_NormBase]:
    """Return whether a module keeps running averages of the batches that it normalises."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def _is_marked(module: nn.Module) -> bool:
    if is_stochastic_depth(module):
        return True
    # hooks and forwards of an instance have to be captured with it
    plain = not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
    return plain and is_normalisation(module)


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Inside the context, marks replace the modules that differ between training and evaluation."""
    with replaced(model, lambda name, part: _is_marked(part), Mark):
        yield


@contextmanager
def replaced(
    model: nn.Module, chosen: Callable[[str, nn.Module], bool], mark: Callable[[str, nn.Module], Mark]
) -> Iterator[None]:
    """Inside the context, marks replace the modules of a model that are chosen by their names and themselves."""
    modules = model.named_modules(remove_duplicate=False)
    found = [(name, part) for name, part in modules if name and chosen(name, part)]
    marks = {part: mark(name, part) for name, part in reversed(found)}  # of two names of a module the first is used
    try:
        for name, module in found:
            model.set_submodule(name, marks[module])
        yield
    finally:
        for name, module in found:
            model.set_submodule(name, module)


def lift_training_behaviour(traced: fx.GraphModule, model: nn.Module) -> None:
    """Replace marks by the model's modules, and functional forms that differ in training by new modules."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _DROPOUTS and not node.args[2]:  # never on
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.target is aten.rrelu.default:
            name = free_name(traced, f"{node.name}_module")
            replace_by_module(traced, node, name, nn.RReLU(*node.args[1:3]), node.args[:1])
        elif node.target in _DROPOUTS:
            module = _DROPOUTS[node.target](float(node.args[1]))
            replace_by_module(traced, node, free_name(traced, f"{node.name}_module"), module, node.args[:1])
        elif node.target is torch.ops.cpt_deploy.mark.default:
            name = str(node.args[1])
            replace_by_module(traced, node, name, model.get_submodule(name), node.args[:1])
        elif node.target is aten.batch_norm.default and node.args[3] is not None:
            statistics: Any = node.args[3]
            name = str(statistics.target).rpartition(".")[0]
            owner = model.get_submodule(name)
            if isinstance(owner, _NormBase):
                replace_by_module(traced, node, name, _norm(owner), node.args[:1])
            else:
                own = free_name(traced, f"{node.name}_module")
                replace_by_module(traced, node, own, _norm_of_tensors(node, model), node.args[:1])
        elif node.target is aten.scaled_dot_product_attention.default:
            _lift_attention(traced, node)
        elif is_mutating(node) and _reads_statistics(node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _norm(owner: nn.Module) -> nn.Module:
    """Return a plain torch BatchNorm: the computation that a subclass adds is in the graph already."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    kind = next((base for base in type(owner).__mro__ if base in kinds), type(owner))
    if kind is not type(owner):
        owner = copy.copy(owner)
        owner.__class__ = kind
    return owner


def _norm_of_tensors(node: fx.Node, model: nn.Module) -> nn.Module:
    """Return a BatchNorm of the tensors that a functional one reads: the model has them outside of a BatchNorm."""
    sources: Any = node.args[1:5]
    tensors: list[Any] = [
        None if source is None else operator.attrgetter(str(source.target))(model) for source in sources
    ]
    weight, bias, mean, variance = tensors
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(node.meta["val"].dim(), nn.BatchNorm1d)
    momentum, eps = (float(value) for value in node.args[6:8])  # type: ignore[arg-type]
    norm = kind(len(mean), eps=eps, momentum=momentum, affine=weight is not None)
    norm.weight, norm.bias, norm.running_mean, norm.running_var = weight, bias, mean, variance
    return norm


def _reads_statistics(node: fx.Node) -> bool:
    source: Any = node.args[0]
    return bool(source.op == "get_attr" and str(source.target).endswith(STATISTICS))


def _lift_attention(traced: fx.GraphModule, node: fx.Node) -> None:
    values = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    values |= dict(zip(values, node.args, strict=False)) | node.kwargs
    module = ScaledDotProductAttention(
        float(values["dropout_p"]), bool(values["is_causal"]), values["scale"], bool(values["enable_gqa"])
    )
    operands = [values[name] for name in ("query", "key", "value", "attn_mask") if values[name] is not None]
    replace_by_module(traced, node, free_name(traced, f"{node.name}_module"), module, tuple(operands))
