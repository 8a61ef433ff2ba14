"""Build timm's models by name, without weights, for any number of channels and classes; timm is optional."""

from typing import Any

from torch import nn

from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_deploy.registry import nearest_names

TIMM_PREFIX = "timm/"


def timm_names() -> list[str]:
    """Return the names of timm's models, without the prefix, sorted.

    Raises:
        MissingExtraError: If timm is not installed.
    """
    return list(_timm(f"{TIMM_PREFIX}*").list_models())


def published_config(name: str) -> Any:
    """Return timm's description of a model's published weights and their images; `None` if it has none.

    Raises:
        MissingExtraError: If timm is not installed.
    """
    return _timm(f"{TIMM_PREFIX}{name}").get_pretrained_cfg(name)


def _timm(wanted: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(f"Expected timm, which has {wanted}, but it is not installed", extra="timm") from error
    return timm


def build_timm(name: str, *, num_classes: int, in_channels: int, input_size: tuple[int, int], **args: Any) -> nn.Module:
    """Build a model of timm with random weights; nothing is downloaded.

    Args:
        name: One of `timm_names`.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        input_size: Height and width of the images; the weights of vision transformers depend on it.
        **args: Further arguments of `timm.create_model`, such as `drop_path_rate`.

    Raises:
        MissingExtraError: If timm is not installed.
        UsageError: If the model does not exist, or does not accept the arguments or the input size.
    """
    timm = _timm(f"{TIMM_PREFIX}{name}")
    if not timm.is_model(name):
        raise UsageError(f"Expected a model of timm, but got {name!r}", hint=nearest_names(name, timm_names()))
    config = published_config(name)
    # a model whose published weights have a fixed input size needs the size in its constructor
    size = {"img_size": input_size} if config is not None and config.fixed_input_size else {}
    settings = {**size, **args}
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **settings
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"Expected arguments that timm's {name} takes, but got {settings}: {reason}") from error
    return model
