"""torchvision's classification models by name, without weights, for any number of channels, classes and input size."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.registry import nearest_names

PREFIX = "torchvision/"

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixels of 0 to 1."""

_IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SYMMETRIC: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_FIXED: dict[str, dict[str, Any]] = {
    # Without these the models warn, and return a tuple of logits in training.
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification models, without the prefix, sorted."""
    import torchvision  # here and below: it takes long, and the project's own networks need none of it

    return sorted(torchvision.models.list_models(module=torchvision.models))


def published_normalization(name: str, args: Mapping[str, Any]) -> Normalization:
    """Return the normalisation of the images that the published weights of a model read.

    It is ImageNet's. GoogLeNet and Inception v3 were trained on pixels of -1 to 1, which torchvision computes from
    ImageNet's normalisation in the network (`transform_input`, on where weights are published). Here the networks have
    no such operations in float before their first layer, so images are to be normalised to -1 to 1 themselves.

    Args:
        name: One of `torchvision_names`.
        args: Further arguments that the model is built with.
    """
    untransformed = {**_FIXED.get(name, {}), **args}.get("transform_input") is False
    return _SYMMETRIC if untransformed else _IMAGENET


def build_torchvision(
    name: str, *, num_classes: int, in_channels: int, input_size: tuple[int, int], **args: Any
) -> nn.Module:
    """Build a torchvision model with fresh weights.

    Args:
        name: One of `torchvision_names`.
        num_classes: Number of logits.
        in_channels: Channels of the images; other than 3 replaces the first convolution.
        input_size: Height and width of the images, which vision transformers are built for.
        **args: Further arguments of the model's constructor, such as `dropout`.

    Raises:
        UsageError: If there is no such model, or it does not take the arguments or the input size.
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
    """Return what the models whose weights depend on the input size need to be told of it."""
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
        # The spread that the model gave this layer is part of its design; PyTorch's default would be another.
        first.weight.normal_().mul_(module.weight.std())
        if first.bias is not None and module.bias is not None:
            first.bias.copy_(module.bias)
    model.set_submodule(name, first)
