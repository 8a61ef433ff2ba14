"""Replace weights that hooks compute before each forward, torch's older mechanism, by parametrizations.

`torch.nn.utils.prune` and `torch.nn.utils.weight_norm` keep parameters of their own and set `weight` in a hook. As a
parametrization the same computation is part of the layer, so it remains trainable.
"""

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from cpt_deploy.errors import ConversionError


class _Mask(nn.Module):
    """Masks a parameter, as pruning does."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, original: Tensor) -> Tensor:
        """Return the parameter with its pruned values set to zero."""
        return original * self.mask


def as_parametrizations(model: nn.Module) -> nn.Module:
    """Return a copy of a model with such hooks replaced by parametrizations, or the model itself if it has none.

    Raises:
        ConversionError: If a module has the older spectral norm, since a parametrization would draw a new random state.
    """
    if not any(_hooks(module) for module in model.modules()):
        return model
    model = _copied(model)
    for name, module in model.named_modules():
        for key, hook in _hooks(module).items():
            if isinstance(hook, SpectralNorm):
                raise ConversionError(
                    f"Expected parametrizations, but module {name!r} has the older torch.nn.utils.spectral_norm",
                    hint="torch.nn.utils.remove_spectral_norm(layer) keeps the present weight, and "
                    "torch.nn.utils.parametrizations.spectral_norm(layer) continues from it",
                )
            del module._forward_pre_hooks[key]
            if isinstance(hook, WeightNorm):
                _weight_norm(module, hook)
            else:
                _pruned(module, str(hook._tensor_name))
    return model


def check_capturable(model: nn.Module) -> None:
    """Check that no parametrization changes its state while it computes, which a captured graph cannot express.

    Raises:
        ConversionError: If one does; names the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, parametrizations._SpectralNorm):
            layer, _, parameter = name.partition(".parametrizations.")
            raise ConversionError(
                f"Expected no spectral norm in a network with operations in float, but module {layer!r} has one",
                hint="torch.nn.utils.parametrize.remove_parametrizations("
                f"layer, {parameter.partition('.')[0]!r}) keeps the weight that it has",
            )


def _hooks(module: nn.Module) -> dict[int, WeightNorm | SpectralNorm | prune.BasePruningMethod]:
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    return {key: hook for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds)}


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model; values computed by hooks are detached, since torch copies only leaves of the autograd graph."""
    computed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach() for value in computed if not value.is_leaf})


def _weight_norm(module: nn.Module, hook: WeightNorm) -> None:
    name = hook.name
    magnitude, direction = (module.get_parameter(f"{name}_{part}") for part in "gv")
    for part in "gv":
        del module._parameters[f"{name}_{part}"]
    _set_parameter(module, name, nn.Parameter(direction.detach().clone()))
    parametrizations.weight_norm(module, name, -1 if hook.dim is None else hook.dim)
    normed = module.get_submodule(f"parametrizations.{name}")
    normed.original0, normed.original1 = magnitude, direction


def _pruned(module: nn.Module, name: str) -> None:
    original, mask = module.get_parameter(f"{name}_orig"), module.get_buffer(f"{name}_mask")
    del module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
    _set_parameter(module, name, original)
    parametrize.register_parametrization(module, name, _Mask(mask), unsafe=True)


def _set_parameter(module: nn.Module, name: str, value: nn.Parameter) -> None:
    vars(module).pop(name, None)  # the value that the hook computed
    module.register_parameter(name, value)
