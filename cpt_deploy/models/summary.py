"""Count the parameters and multiply-accumulates of a model."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cpt_deploy.models.catalog import build_model
from cpt_deploy.quantization.modes import in_evaluation

_SMALL = 64 * 64
"""Pixels up to which an image goes through a network sooner than its shapes go through the meta device."""


@dataclass(frozen=True)
class ModelSummary:
    """The size of a model.

    Args:
        parameters: Number of trainable values.
        macs: Multiply-accumulates of convolutions and matrix products per image in forward.
    """

    parameters: int
    macs: int


def describe_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    input_size: tuple[int, int],
    **args: Any,
) -> ModelSummary:
    """Count a model's parameters and multiply-accumulates; the arguments are those of `build_model`.

    Raises:
        UsageError: As `build_model`.
    """
    small = input_size[0] * input_size[1] <= _SMALL
    # RegNets, timm and maybe a user's factory compute widths and rates in tensors; the meta device has no values.
    reads_values = ":" in name or name.startswith(("torchvision/regnet_", "timm/"))
    with torch.device("cpu" if small or reads_values else "meta"):
        model = build_model(name, num_classes=num_classes, in_channels=in_channels, input_size=input_size, **args)
    return summarize(model if small else model.to("meta"), (in_channels, *input_size))


def summarize(model: nn.Module, input_shape: tuple[int, ...]) -> ModelSummary:
    """Count the parameters and multiply-accumulates of a model.

    Args:
        model: Any model; a model on the meta device is counted without computing anything.
        input_shape: Shape of one input, without the batch.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    device = next((parameter.device for parameter in model.parameters()), None)
    counter = _ProductCounter()
    with torch.no_grad(), in_evaluation(model), counter:
        model(torch.zeros(1, *input_shape, device=device))
    # A formula counts a multiplication and an addition as two operations.
    return ModelSummary(parameters, counter.operations // 2)


class _Counting:
    """Adds up torch's formulas of the operators that run, as torch's `FlopCounterMode` does."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports Triton

        super().__init__()
        self.operations = 0
        self._formulas = flop_registry

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), settings: Any = None) -> Any:
        settings = settings or {}
        formula = self._formulas.get(operator.overloadpacket)
        if formula is None:
            with cast(TorchDispatchMode, self):
                parts = operator.decompose(*args, **settings)
            if parts is not NotImplemented:
                return parts
        result = operator(*args, **settings)
        if formula is not None:
            self.operations += formula(*args, **settings, out_val=result)
        return result


class _ProductCounter(_Counting, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode. Its method is inherited, since torch imports its whole compiler to call a mode's own method."""
