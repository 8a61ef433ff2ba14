"""Replace modules of other libraries by equivalent torch modules before a network is traced."""

import copy
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.utils import parametrize

from cpt_deploy.quantization.graph.naming import rename_clashing

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: Attributes that a class may define while still computing the same as its base class.
_DESCRIPTIVE = frozenset(
    {
        "__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
        "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__constants__", "__repr__",
        "__weakref__", "__dict__", "extra_repr", "reset_parameters", "_get_name",
    }
)  # fmt: skip


def taken_apart(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which such modules are replaced by modules of torch, one per operation.

    A class that only sets defaults of a torch class becomes that class. In timm (parameters and buffers stay the same),
    `BatchNormAct2d`, a BatchNorm with dropout and an activation after it, becomes a Sequential of `norm`, `drop` and
    `act`; `Linear`, whose weight is cast in scripts, becomes torch's. In transformers, `Conv1D`, GPT-2's Linear with a
    transposed weight, becomes torch's Linear.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        base = _base(module)
        if name and base is not None:
            model.set_submodule(name, like(module, base))
            continue
        if name and isinstance(module, nn.BatchNorm2d) and _is(module, "timm", "BatchNormAct2d"):
            model.set_submodule(name, _sequential(module))
        elif name and isinstance(module, nn.Linear) and _is(module, "timm", "Linear"):
            model.set_submodule(name, _linear(module.weight, module.bias).train(module.training))
        elif name and _is(module, "transformers", "Conv1D"):
            weight = nn.Parameter(module.get_parameter("weight").detach().t().contiguous())
            model.set_submodule(name, _linear(weight, module.get_parameter("bias")).train(module.training))
    rename_clashing(model)
    return model


def like(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """Return a new module with the same attributes, parameters and submodules, of the same or a given class."""
    kind = kind or type(module)
    other = kind.__new__(kind)
    other.__dict__ = dict(vars(module))
    return other


def _base(module: nn.Module) -> type[nn.Module] | None:
    """Return the torch class of which a module's class only sets defaults; None for all other classes."""
    kind = type(module)
    base = next(cls for cls in kind.__mro__ if cls.__module__.startswith("torch."))
    if base is kind or issubclass(kind, _CONTAINERS) or not issubclass(base, nn.Module) or base is nn.Module:
        return None
    if "forward" in vars(module) or parametrize.is_parametrized(module):
        return None
    for cls in kind.__mro__[: kind.__mro__.index(base)]:
        for name, value in vars(cls).items():
            computes = hasattr(base, name) or isinstance(value, property) or name in vars(module)
            if computes and name not in _DESCRIPTIVE:
                return None
    return base


def _is(module: nn.Module, library: str, name: str) -> bool:
    kind = type(module)
    return kind.__name__ == name and kind.__module__.partition(".")[0] == library


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
    return linear


def _sequential(module: nn.BatchNorm2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )  # fmt: skip
    own = {name: tensor for name, tensor in module.state_dict().items() if "." not in name}
    norm.load_state_dict(own, assign=True)
    norm.train(module.training)
    parts = OrderedDict[str, nn.Module](norm=norm)
    parts.update({name: module.get_submodule(name) for name in ("drop", "act")})
    return nn.Sequential(parts)
