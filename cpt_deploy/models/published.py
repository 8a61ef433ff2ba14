"""How images were preprocessed for the published weights of torchvision's and timm's models."""

import math
from dataclasses import dataclass
from typing import Literal

from cpt_deploy.models.timm_models import TIMM_PREFIX, published_config
from cpt_deploy.models.torchvision_models import PREFIX, published_normalization


@dataclass(frozen=True)
class PublishedInput:
    """The preprocessing of three channels in the evaluation of published weights.

    Attributes:
        mean: Mean per channel, for pixels in 0..1.
        std: Standard deviation per channel.
        size: Height and width of the centre crop, in pixels.
        resize: Length of the shorter side before the crop, in pixels.
        interpolation: "bilinear" or "bicubic".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    resize: int
    interpolation: Literal["bilinear", "bicubic"]


def published_input(name: str) -> PublishedInput | None:
    """Return the preprocessing of a model's published weights, of the newest ones if there are several.

    Args:
        name: `torchvision/NAME` or `timm/NAME`; others have no published weights.

    Raises:
        MissingExtraError: If timm is asked for and not installed.
    """
    if name.startswith(PREFIX):
        return _of_torchvision(name.removeprefix(PREFIX))
    return _of_timm(name.removeprefix(TIMM_PREFIX)) if name.startswith(TIMM_PREFIX) else None


def _of_torchvision(name: str) -> PublishedInput | None:
    import torchvision  # slow to import, and the project's own networks do not need it

    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
    if weights is None:
        return None
    found = weights.transforms()
    (size,), (resize,) = found.crop_size, found.resize_size
    interpolation = _known(found.interpolation.value)
    return PublishedInput(*published_normalization(name, {}), (size, size), resize, interpolation)


def _of_timm(name: str) -> PublishedInput | None:
    config = published_config(name)
    if config is None or len(config.mean) != 3:
        return None
    height, width = config.input_size[1:]
    resize = math.floor(max(height, width) / config.crop_pct)
    mean, std = tuple(config.mean), tuple(config.std)
    return PublishedInput(mean, std, (height, width), resize, _known(config.interpolation))


def _known(interpolation: str) -> Literal["bilinear", "bicubic"]:
    return "bicubic" if interpolation == "bicubic" else "bilinear"
