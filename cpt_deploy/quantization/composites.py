"""Modules of other libraries that are several operations in one, taken apart before a graph is made of a network."""

import copy
from collections import OrderedDict

from torch import nn


def taken_apart(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which such modules are what they compute, one operation a module.

    Theirs is timm's `BatchNormAct2d`, a BatchNorm with dropout and an activation behind it: a Sequential of `norm`,
    `drop` and `act`, with the same parameters and buffers.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if name and isinstance(module, nn.BatchNorm2d) and _is_composite(module):
            model.set_submodule(name, _sequential(module))
    return model


def _is_composite(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.partition(".")[0] == "timm"


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
