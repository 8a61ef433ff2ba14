"""Load the user's own data sets, given by import path `module:factory`."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cpt_deploy.data.images import ArrayImages, CallableImages, ImageSet, Pixels, Split
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.registry import import_object

_WANTED = (
    "return an ImageSet; or (images uint8 (N,H,W[,3]), labels); or a data set with len() and [i] -> (image, label), "
    "and class names as its attribute `classes`"
)


def load_custom(path: str, split: Split, root: Path | None) -> ImageSet:
    """Call `factory(split=..., root=...)` and wrap the returned data set.

    A factory without a parameter `root` is called with the split only. Labels are taken from `targets` or `labels`;
    without either, every item is read once.

    Raises:
        UsageError: If the path cannot be imported or the factory returns anything else.
    """
    factory = import_object(path)
    if not callable(factory):
        raise UsageError(f"Expected {path!r} to be callable, but got {type(factory).__name__}", hint=_WANTED)
    parameters = inspect.signature(factory).parameters.values()
    takes_root = any(item.name == "root" or item.kind is item.VAR_KEYWORD for item in parameters)
    if not any(item.name == "split" or item.kind is item.VAR_KEYWORD for item in parameters):
        raise UsageError(
            f"Expected {path!r} to have a parameter split, 'train' or 'test', but it has none", hint=_WANTED
        )
    made = factory(split=split, root=root) if takes_root else factory(split=split)
    if isinstance(made, ImageSet):
        return made
    if isinstance(made, tuple) and len(made) == 2:
        pixels, labels = np.asarray(made[0]), _whole(made[1])
        return ArrayImages(path, split, _class_names(factory, labels), labels, pixels)
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise UsageError(f"Expected {path!r} to give a data set, but got {type(made).__name__}", hint=_WANTED)
    labels = _labels(made)
    return CallableImages(path, split, _class_names(made, labels), labels, _ItemReader(made, path))


def _labels(dataset: Any) -> npt.NDArray[np.int64]:
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return _whole(getattr(dataset, name))
    try:
        return _whole([dataset[index][1] for index in range(len(dataset))])
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(f"Expected items (image, label) of a data set, but got {error!r}", hint=_WANTED) from error


def _whole(labels: Any) -> npt.NDArray[np.int64]:
    found = np.asarray(labels)
    if len(found) and not np.issubdtype(found.dtype, np.integer):
        raise UsageError(f"Expected labels to be numbers of classes from 0 on, but got {found.dtype}", hint=_WANTED)
    return found.astype(np.int64)


def _class_names(holder: Any, labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    names = getattr(holder, "classes", None)
    if names is not None:
        return tuple(str(name) for name in names)
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


@dataclass(frozen=True, eq=False)
class _ItemReader:
    """Reads the images of a user's data set."""

    dataset: Any
    path: str

    def __call__(self, index: int) -> Pixels | Image.Image:
        image = self.dataset[index][0]
        if isinstance(image, torch.Tensor):  # (C, H, W), as torchvision's transforms return
            image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
        if isinstance(image, Image.Image):
            return image
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:
            raise DataError(
                f"Expected images of {self.path!r} to be Pillow images or uint8, but got {pixels.dtype}",
                hint="leave scaling and normalisation to the recipe (data.input), so that the bundle includes them",
            )
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
            raise DataError(
                f"Expected image {index} of {self.path!r} to be (H, W), (H, W, 1) or (H, W, 3), but got {pixels.shape}"
            )
        return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
