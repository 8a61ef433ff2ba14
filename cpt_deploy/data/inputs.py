"""Complete a recipe's input settings to a preprocessing; settings that are null come from the data."""

import numpy as np

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data.images import ArrayImages, ImageSet
from cpt_deploy.data.registry import datasets
from cpt_deploy.errors import RecipeError
from cpt_deploy.recipe import InputSettings

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MIN_STD = 1e-3


def default_preprocessing(images: ImageSet) -> Preprocessing:
    """Return the default preprocessing of a data set.

    A known data set has its published values. Arrays keep their size and are normalised by their own mean and
    standard deviation. Other images are treated as photographs: a crop of 224 pixels from 256 with ImageNet's values,
    or the size of the first image if that is smaller.

    Args:
        images: The training images.

    Raises:
        DataError: If the first image cannot be read.
    """
    if images.published:
        return datasets.get(images.published).preprocessing
    if isinstance(images, ArrayImages):
        mean, std = _statistics(images)
        return Preprocessing(channels=images.channels, size=images.size, mean=mean, std=std)
    first = np.asarray(images.image(0))
    height, width = first.shape[0], first.shape[1]
    large = min(height, width) >= 224
    size, resize = ((224, 224), 256) if large else ((height, width), None)
    return Preprocessing(channels=3, size=size, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, resize=resize)


def resolve_preprocessing(settings: InputSettings, default: Preprocessing) -> Preprocessing:
    """Fill in the settings that are null.

    If the number of channels differs from the default's, mean and standard deviation are repeated or averaged; if the
    size differs, the resize keeps its proportion to the size.

    Raises:
        RecipeError: If the settings are inconsistent.
    """
    channels = settings.channels or default.channels
    size = settings.size or default.size
    resize = settings.resize
    if resize is None and default.resize is not None:
        resize = default.resize if size == default.size else round(default.resize * max(size) / max(default.size))
    try:
        return Preprocessing(
            channels=channels,
            size=size,
            mean=settings.mean or _for_channels(default.mean, channels),
            std=settings.std or _for_channels(default.std, channels),
            resize=resize,
            interpolation=settings.interpolation or default.interpolation,
        )
    except ValueError as error:
        raise RecipeError(f"Expected data.input to fit together, but got: {error}") from error


def input_settings(preprocessing: Preprocessing) -> InputSettings:
    """Return a preprocessing as complete input settings; `resolve_preprocessing` is the inverse."""
    fields = preprocessing.to_dict()
    return InputSettings.model_validate({key: fields[key] for key in InputSettings.model_fields})


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    return values * 3 if channels == 3 else (round(sum(values) / len(values), 4),)


def _statistics(images: ArrayImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels in 0..1, rounded to 4 decimals."""
    planes = images.pixels[..., None] if images.channels == 1 else images.pixels
    values = np.arange(256) / 255.0
    mean, std = [], []
    for channel in range(images.channels):
        # Computed from counts, so that the sum is exact and no float copy of the data set is needed.
        share = np.bincount(planes[..., channel].reshape(-1), minlength=256) / planes[..., channel].size
        average = float(share @ values)
        mean.append(round(average, 4))
        std.append(round(max(float(share @ (values - average) ** 2) ** 0.5, _MIN_STD), 4))
    return tuple(mean), tuple(std)
