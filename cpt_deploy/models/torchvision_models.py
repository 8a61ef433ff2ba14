"""Build torchvision's classification models by name, without weights, for any channels, classes and input size."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.registry import nearest_names

PREFIX = "torchvision/"

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, for pixels in 0..1."""

_IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SYMMETRIC: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_FIXED: dict[str, dict[str, Any]] = {
    # Without these settings the models warn, and return a tuple of logits in training.
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification models, without the prefix, sorted."""
    import torchvision  # here and below: slow to import, and the project's own networks do not need it

    return sorted(torchvision.models.list_models(module=torchvision.models))


def published_normalization(name: str, args: Mapping[str, Any]) -> Normalization:
    """Return the normalisation of images that the published weights of a model expect.

    It is ImageNet's, except for GoogLeNet and Inception v3. These were trained on pixels in -1..1, which torchvision's
    network computes from ImageNet's normalisation (`transform_input`, on for published weights). The networks here omit
    these float operations before the first layer, so the images themselves must be normalised to -1..1.

    Args:
        name: One of `torchvision_names`.
        args: Further arguments that the model is built with.
    """
    untransformed = {**_FIXED.get(name, {}), **args}.get("transform_input") is False
    return _SYMMETRIC if untransformed else _IMAGENET


def build_torchvision(
    name: str, *, num_classes: int, in_channels: int, input_size: tuple[int, int], **args: Any
) -> nn.Module:
    """Build a torchvision model with random weights.

    Args:
        name: One of `torchvision_names`.
        num_classes: Number of logits.
        in_channels: Channels of the images; a number other than 3 replaces the first convolution.
        input_size: Height and width of the images; the weights of vision transformers depend on it.
        **args: Further arguments of the model's constructor, such as `dropout`.

    Raises:
        UsageError: If the model does not exist, or does not accept the arguments or the input size.
    """
    import torchvision

    known = torchvision_names()
    if name not in known:
        raise UsageError(
            f"Expected a classification model of torchvision, but got {name!r}", hint=nearest_names(name, known)
        )
    settings = {**_FIXED.get(name, {}), **_size_arguments(name, input_size), **args}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Expected arguments that torchvision's {name} takes, but got {settings}: {reason}") from error
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return model


def _size_arguments(name: str, input_size: tuple[int, int]) -> dict[str, Any]:
    """Return the constructor arguments for the input size, for models whose weights depend on it."""
    if name.startswith("vit_"):
        if input_size[0] != input_size[1]:
            raise UsageError(f"Expected square images for {name}, but got {input_size[0]} x {input_size[1]}")
        return {"image_size": input_size[0]}
    if name.startswith("maxvit_"):
        return {"input_size": input_size}
    return {}


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    name, module = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    first = nn.Conv2d(
        in_channels,
        module.out_channels,
        kernel_size=module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
    )
    with torch.no_grad():
        # Keep the standard deviation of the model's own initialisation, which is part of its design.
        first.weight.normal_().mul_(module.weight.std())
        if first.bias is not None and module.bias is not None:
            first.bias.copy_(module.bias)
    model.set_submodule(name, first)
