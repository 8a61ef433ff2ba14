"""How images were preprocessed for the published weights of torchvision's and timm's models."""

import math

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.bundle.processors.preprocessing import Interpolation
from cpt_deploy.models.timm_models import TIMM_PREFIX, published_config
from cpt_deploy.models.torchvision_models import PREFIX, published_normalization, torchvision_names


def published_input(name: str) -> Preprocessing | None:
    """Return the preprocessing in the evaluation of a model's published weights, the newest ones if there are several.

    Args:
        name: `torchvision/NAME` or `timm/NAME`; others have no published weights.

    Raises:
        MissingExtraError: If timm is asked for and not installed.
    """
    if name.startswith(PREFIX):
        return _of_torchvision(name.removeprefix(PREFIX))
    return _of_timm(name.removeprefix(TIMM_PREFIX)) if name.startswith(TIMM_PREFIX) else None


def _of_torchvision(name: str) -> Preprocessing | None:
    import torchvision  # slow to import, and the project's own networks do not need it

    if name not in torchvision_names():
        return None
    found = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    (size,), (resize,) = found.crop_size, found.resize_size
    mean, std = published_normalization(name, {})
    return Preprocessing(3, (size, size), mean, std, resize, _known(found.interpolation.value))


def _of_timm(name: str) -> Preprocessing | None:
    config = published_config(name)
    if config is None or len(config.mean) != 3:
        return None
    height, width = config.input_size[1:]
    resize = math.floor(max(height, width) / config.crop_pct)
    mean, std = tuple(config.mean), tuple(config.std)
    return Preprocessing(3, (height, width), mean, std, resize, _known(config.interpolation))


def _known(interpolation: str) -> Interpolation:
    return "bicubic" if interpolation == "bicubic" else "bilinear"
