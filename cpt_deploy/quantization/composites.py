"""Modules of other libraries, put as torch's own before a graph is made of a network."""

import copy
from collections import OrderedDict

from torch import Tensor, nn

from cpt_deploy.quantization.naming import rename_clashing


def taken_apart(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which such modules are what they compute, one operation a module of torch.

    Of timm, whose parameters and buffers stay the same: `BatchNormAct2d`, a BatchNorm with dropout and an activation
    behind it, becomes a Sequential of `norm`, `drop` and `act`; `Linear`, whose weight is cast in scripts, becomes
    torch's. Of transformers: `Conv1D`, GPT-2's Linear, whose weight lies the other way round, becomes torch's Linear.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if name and isinstance(module, nn.BatchNorm2d) and _is(module, "timm", "BatchNormAct2d"):
            model.set_submodule(name, _sequential(module))
        elif name and isinstance(module, nn.Linear) and _is(module, "timm", "Linear"):
            model.set_submodule(name, _linear(module.weight, module.bias).train(module.training))
        elif name and _is(module, "transformers", "Conv1D"):
            weight = nn.Parameter(module.get_parameter("weight").detach().t().contiguous())
            model.set_submodule(name, _linear(weight, module.get_parameter("bias")).train(module.training))
    rename_clashing(model)
    return model


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
