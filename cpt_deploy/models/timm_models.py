"""timm's image models by name, without weights, for any number of channels, classes and input size."""

import fnmatch
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_deploy.registry import nearest_names

PREFIX = "timm/"


def timm_names(pattern: str = "*") -> list[str]:
    """Return the names of timm's models that match a shell pattern, without the prefix; none if it is not installed."""
    if find_spec("timm") is None:
        return []
    return fnmatch.filter(_timm().list_models(), pattern)


def build_timm(name: str, *, num_classes: int, in_channels: int, input_size: tuple[int, int], **args: Any) -> nn.Module:
    """Build a timm model with fresh weights.

    Args:
        name: One of `timm_names`.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        input_size: Height and width of the images, which vision transformers are built for.
        **args: Further arguments of the model's constructor, such as `drop_path_rate`.

    Raises:
        MissingExtraError: If timm is not installed.
        UsageError: If there is no such model, or it does not take the arguments or the input size.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise UsageError(f"Expected a model of timm, but got {name!r}", hint=nearest_names(name, timm.list_models()))
    settings = {"num_classes": num_classes, "in_chans": in_channels, **args}
    try:
        return _created(timm, name, settings, input_size)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Expected arguments that timm's {name} takes, but got {settings}: {reason}") from error


def _created(timm: ModuleType, name: str, settings: dict[str, Any], size: tuple[int, int]) -> nn.Module:
    """Tell the models whose weights depend on the input size of it; the others know no such argument."""
    try:
        model: nn.Module = timm.create_model(name, img_size=size, **settings)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        model = timm.create_model(name, **settings)
    return model


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtraError("Expected timm, but it is not installed", hint="pip install timm") from error
    module: ModuleType = timm
    return module
