"""Augmentations by name: torchvision's transforms on 8-bit pixels, the two most common ones vectorised over a batch.

All of them draw from torch's global CPU generator, which the loader seeds for each batch.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cpt_deploy.errors import UsageError
from cpt_deploy.registry import Registry, import_object, nearest_names

ImageTransform = Callable[[Tensor], Tensor]
"""A function from one image, uint8 (C, H, W), to another."""

BatchTransform = Callable[[Tensor, slice, int], Tensor]
"""A function on a part of a batch: images, uint8 (N, C, H, W), their slice of the batch, and the batch's length.

It draws random numbers for the whole batch, so that an image is augmented in the same way in any part."""


@dataclass(frozen=True)
class Augmentation:
    """One random augmentation of training images; it can be pickled, for processes that load batches.

    Args:
        name: Its name in recipes.
        one: Augments one image, uint8 (C, H, W).
        batch: Augments all images of a part of a batch at once, each independently; None without a vectorised form.
        sizes: Whether it accepts images of any size and returns them at the input's size.
    """

    name: str
    one: ImageTransform
    batch: BatchTransform | None = None
    sizes: bool = False


Builder = Callable[..., Augmentation]
augmentations: Registry[Builder] = Registry("augmentation")
"""Builders by name; each takes the input's size (H, W), and its own parameters as keyword arguments."""


def build_augmentations(steps: Sequence[tuple[str, Mapping[str, Any]]], size: tuple[int, int]) -> list[Augmentation]:
    """Build a recipe's augmentations in order.

    Args:
        steps: Names and parameters. A name `module:factory` is imported and called with the parameters, and returns
            a callable on uint8 (C, H, W).
        size: Height and width of the model's input.

    Raises:
        UsageError: If a name or a parameter is unknown, or torchvision refuses a value.
    """
    return [_build(name, parameters, size) for name, parameters in steps]


def _build(name: str, parameters: Mapping[str, Any], size: tuple[int, int]) -> Augmentation:
    try:
        if ":" in name:
            return Augmentation(name, cast(Callable[..., ImageTransform], import_object(name))(**parameters))
        builder = augmentations.get(name)
        known = [key for key in inspect.signature(builder).parameters if key != "size"]
        for key in parameters:
            if key not in known:
                raise UsageError(
                    f"Expected a parameter of augmentation {name!r}, but got {key!r}", hint=nearest_names(key, known)
                )
        return builder(size, **parameters)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Expected parameters that fit augmentation {name!r}, but got: {error}") from error


@functools.cache
def _transforms() -> Any:
    """Return torchvision's transforms, imported at the first use because the import is slow."""
    from torchvision.transforms import v2

    return v2


def _one(transform: str, image: Tensor, **settings: Any) -> Tensor:
    """Augment one image by a transform of torchvision, made at the first image: most runs augment whole batches."""
    augmented: Tensor = _made(transform, **settings)(image)
    return augmented


@functools.cache
def _made(transform: str, **settings: Any) -> ImageTransform:
    made: ImageTransform = getattr(_transforms(), transform)(**settings)
    return made


def _numbers(values: Any) -> Any:
    """Convert a list from YAML to the tuple that torchvision expects."""
    return tuple(values) if isinstance(values, list) else values


@augmentations.register("random_crop")
def _random_crop(size: tuple[int, int], padding: int = 4, fill: int = 0) -> Augmentation:
    integers = isinstance(padding, int) and isinstance(fill, int) and not isinstance(padding, bool)
    if not integers or padding < 0 or not 0 <= fill <= 255:
        raise ValueError(f"padding {padding!r}, an integer of at least 0, and fill {fill!r}, an integer of 0 to 255")
    settings: dict[str, Any] = {"size": size, "padding": padding, "fill": fill}
    one, batch = functools.partial(_one, "RandomCrop", **settings), functools.partial(_cropped, **settings)
    return Augmentation("random_crop", one, batch)


def _cropped(images: Tensor, part: slice, whole: int, size: tuple[int, int], padding: int, fill: int) -> Tensor:
    height, width = size
    padded = torch.nn.functional.pad(images, (padding,) * 4, value=fill)
    top = torch.randint(padded.shape[2] - height + 1, (whole,))[part]
    left = torch.randint(padded.shape[3] - width + 1, (whole,))[part]
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (N, C, tops, lefts, H, W)
    return windows[torch.arange(len(images)), :, top, left]


@augmentations.register("hflip")
def _hflip(size: tuple[int, int], p: float = 0.5) -> Augmentation:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p {p}")
    return Augmentation("hflip", functools.partial(_one, "RandomHorizontalFlip", p=p), functools.partial(_flipped, p=p))


def _flipped(images: Tensor, part: slice, whole: int, p: float) -> Tensor:
    flipped = torch.rand(whole)[part] < p
    images = images.clone()
    images[flipped] = images[flipped].flip(-1)
    return images


_STRONGEST = 30
"""The last of torchvision's 31 magnitudes of RandAugment."""


def _library(name: str, transform: str, *, sizes: bool = False, **defaults: Any) -> None:
    """Register one of torchvision's transforms with its parameters and their defaults.

    Args:
        name: The name in recipes.
        transform: The class in `torchvision.transforms.v2`.
        sizes: Whether it accepts images of any size and returns them at the input's size, its first argument.
        defaults: The parameters that a recipe can set.
    """

    def build(size: tuple[int, int], **parameters: Any) -> Augmentation:
        values = {key: _numbers(value) for key, value in (defaults | parameters).items()}
        if transform in ("RandomRotation", "RandomAffine"):
            values["interpolation"] = _transforms().InterpolationMode.BILINEAR
        if transform == "RandAugment" and not 0 <= values["magnitude"] <= _STRONGEST:
            raise ValueError(f"magnitude {values['magnitude']}, which is at most {_STRONGEST}")
        if transform == "AutoAugment":
            values["policy"] = _transforms().AutoAugmentPolicy(values["policy"])
        made = getattr(_transforms(), transform)
        return Augmentation(name, made(size, **values) if sizes else made(**values), sizes=sizes)

    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in ("size", *defaults)]
    )
    augmentations.register(name)(build)


_library("vflip", "RandomVerticalFlip", p=0.5)
_library("random_resized_crop", "RandomResizedCrop", sizes=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
_library("color_jitter", "ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0)
_library("grayscale", "RandomGrayscale", p=0.1)
_library("rotation", "RandomRotation", degrees=15.0, fill=0)
_library("affine", "RandomAffine", degrees=0.0, translate=None, scale=None, shear=None, fill=0)
_library("gaussian_blur", "GaussianBlur", kernel_size=3, sigma=(0.1, 2.0))
_library("erasing", "RandomErasing", p=0.25, scale=(0.02, 0.33), value=0)
_library("randaugment", "RandAugment", num_ops=2, magnitude=9)
_library("trivialaugment", "TrivialAugmentWide")
_library("autoaugment", "AutoAugment", policy="imagenet")
