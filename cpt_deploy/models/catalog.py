"""Build a model by name: from the registry, from torchvision or timm, or from the user's own module."""

import fnmatch
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models.cifar_mobilenet import CifarMobileNetV2
from cpt_deploy.models.cifar_resnet import cifar_resnet, tiny_resnet
from cpt_deploy.models.timm_models import TIMM_PREFIX, build_timm, timm_names
from cpt_deploy.models.torchvision_models import PREFIX, build_torchvision, torchvision_names
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.registry import ONNX_FILE, Registry, import_object, nearest_names

ModelFactory = Callable[..., nn.Module]
"""A function that builds a model; it gets those of `num_classes`, `in_channels`, `input_size` that it accepts."""

DEPTHS = (8, 20, 38, 74, 110, 152, 164)
"""Depths of the registered CIFAR ResNets; the paper uses those from 38 on."""

models: Registry[ModelFactory] = Registry("model")
"""The project's own models, by name."""

models.register("tiny")(tiny_resnet)
models.register("mobilenetv2")(CifarMobileNetV2)
for _depth in DEPTHS:
    models.register(f"resnet{_depth}")(partial(cifar_resnet, _depth))


def model_names(pattern: str = "*") -> list[str]:
    """Return the names of the known models that match a shell pattern: the project's own, then torchvision's.

    timm's are listed only for patterns that begin with `timm/`: there are more than a thousand, and timm is slow to
    import.
    """
    if pattern.startswith(TIMM_PREFIX):
        return fnmatch.filter([TIMM_PREFIX + name for name in timm_names()], pattern)
    own, head = models.names(pattern), re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    if not (PREFIX.startswith(head) or head.startswith(PREFIX)):  # torchvision takes longer to import than torch
        return own
    return [*own, *fnmatch.filter([PREFIX + name for name in torchvision_names()], pattern)]


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    input_size: tuple[int, int],
    **args: Any,
) -> nn.Module:
    """Build a model with random weights, and check that it maps images of this size to `num_classes` logits.

    Args:
        name: One of `model_names`; "onnx:FILE", an image classifier with its weights; or an import path
            "module:factory" of a class or function that returns a module; it gets those of `num_classes`, `in_channels`
            and `input_size` that it accepts.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        input_size: Height and width of the images, in pixels.
        **args: Further arguments of the model, such as `width=32` of the CIFAR ResNets.

    Returns:
        The model, in training mode, on PyTorch's current default device.

    Raises:
        UsageError: If the name is unknown, or the model does not accept the arguments or images of that size.
        MissingExtraError: If it is a timm model and timm is not installed.
    """
    shape: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
    try:
        model = _build(name, shape, args)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"Expected arguments that model {name} can be built with, but {shape | args} fail: {_first_line(error)}",
            hint="data.input.size sets the size of images, model.args.NAME=VALUE other arguments",
        ) from error
    _check_output(name, model, num_classes, (in_channels, *input_size))
    return model


def _build(name: str, shape: dict[str, Any], args: dict[str, Any]) -> nn.Module:
    if name.startswith(PREFIX):
        return build_torchvision(name.removeprefix(PREFIX), **shape, **args)
    if name.startswith(TIMM_PREFIX):
        return build_timm(name.removeprefix(TIMM_PREFIX), **shape, **args)
    if name.startswith(ONNX_FILE):
        from cpt_deploy.models.onnx_module import build_onnx  # onnx takes long to import

        return build_onnx(Path(name.removeprefix(ONNX_FILE)), **shape, **args)
    if ":" in name:
        return _build_imported(name, shape, args)
    if name in models:
        return _call(name, models.get(name), shape, args)
    raise UsageError(f"Expected a known model, but got {name!r}", hint=nearest_names(name, model_names()))


def _build_imported(path: str, shape: dict[str, Any], args: dict[str, Any]) -> nn.Module:
    factory = import_object(path)
    if not callable(factory):
        raise UsageError(f"Expected {path!r} to be callable, but it is of type {type(factory).__name__}")
    model = _call(path, cast(ModelFactory, factory), shape, args)
    if not isinstance(model, nn.Module):
        raise UsageError(f"Expected {path!r} to return a torch.nn.Module, but got {type(model).__name__}")
    return model


def _call(name: str, factory: ModelFactory, shape: dict[str, Any], args: dict[str, Any]) -> nn.Module:
    """Call a factory with the shape arguments that it accepts; the user's arguments must all be accepted."""
    signature = inspect.signature(factory)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    accepted = shape
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        accepted = {key: value for key, value in shape.items() if key in signature.parameters}
    settings = {**accepted, **args}
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise UsageError(
            f"Expected arguments that model {name} takes, but got {settings}: {error}",
            hint=f"{', '.join(shape)} are given to models with such parameters, others as model.args.NAME=VALUE",
        ) from error
    return factory(**settings)


def _check_output(name: str, model: nn.Module, num_classes: int, input_shape: tuple[int, ...]) -> None:
    """Run one black image, so that an input size the model cannot process fails now and not hours later."""
    parameter = next(model.parameters(), None)
    image = torch.zeros(1, *input_shape, device=None if parameter is None else parameter.device)
    size = " x ".join(map(str, input_shape))
    try:
        with torch.no_grad(), in_evaluation(model):
            logits = model(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"Expected images that model {name} can take, but {size} (channels x height x width) fails: "
            f"{_first_line(error)}",
            hint="larger images may work: set data.input.size",
        ) from error
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != (1, num_classes):
        raise UsageError(f"Expected model {name} to return logits of shape (1, {num_classes}), but got {got}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
