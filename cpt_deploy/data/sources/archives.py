"""Read images from NumPy archives: `.npz` files with arrays, or with JPEG bytes that are decoded once into memory."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpt_deploy.bundle.processors.images import decode_image
from cpt_deploy.data.images import ArrayImages, Pixels, Split
from cpt_deploy.data.sources.class_names import read_names
from cpt_deploy.errors import DataError, ImageError

CLASSES_FILE = "classes.txt"

_PATTERNS: dict[Split, str] = {"train": "train*.npz", "test": "test*.npz"}
_IMAGES = ("images", "image", "data", "x")
_LABELS = ("labels", "label", "targets", "y")
_FORMS = "arrays images (uint8 N,H,W or N,H,W,3) and labels; or jpeg, offset and label"


def is_archive_folder(root: Path) -> bool:
    """Return whether a folder has archives with the names that `load_archives` expects."""
    return any(next(root.glob(pattern), None) is not None for pattern in _PATTERNS.values())


def load_archives(path: Path, split: Split) -> ArrayImages:
    """Return the images of a folder with `train*.npz`, `test*.npz` and `classes.txt`, or of one `.npz` file.

    Several files of a split are concatenated in the order of their names. A single file has `x_train`, `y_train`,
    `x_test` and `y_test`, or one set of images, which is then a test set.

    Raises:
        DataError: If a file is missing or damaged, or lacks required arrays.
    """
    if path.is_file():
        parts = [_read_archive(path, split, alone=True)]
    else:
        files = sorted(path.glob(_PATTERNS[split]))
        if not files:
            raise DataError(f"Expected {_PATTERNS[split]} in {path}, but found none", hint=f"each holds {_FORMS}")
        parts = [_read_archive(file, split, alone=False) for file in files]
    shapes = {images.shape[1:] for images, _ in parts}
    if len(shapes) > 1:
        raise DataError(f"Expected images of one size in {path}, but got {sorted(shapes)}")
    pixels = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([values for _, values in parts])
    classes = _class_names(path, labels)
    return ArrayImages(path.resolve().name.removesuffix(".npz"), split, classes, labels, pixels)


def _class_names(path: Path, labels: np.ndarray[Any, Any]) -> tuple[str, ...]:
    file = (path.parent if path.is_file() else path) / CLASSES_FILE
    if file.is_file():
        return tuple(line.strip() for line in read_names(file) if line.strip())
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _read_archive(path: Path, split: Split, *, alone: bool) -> tuple[Pixels, np.ndarray[Any, Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # An .npy file named .npz gives an array, which is not a context manager: TypeError. Pickled arrays: ValueError.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"Expected {path} to be a whole .npz file of plain arrays, but got: {error}") from error
    if f"x_{split}" in arrays and f"y_{split}" in arrays:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    elif alone and split == "train":
        raise DataError(
            f"Expected x_train, y_train, x_test and y_test in {path}, but got {', '.join(arrays)}",
            hint="or give a folder with train.npz and test.npz, so that training and test images are kept apart",
        )
    elif "jpeg" in arrays and "offset" in arrays:
        images, labels = _decode_all(path, arrays["jpeg"], arrays["offset"]), _first(path, arrays, _LABELS)
    else:
        images, labels = _first(path, arrays, _IMAGES), _first(path, arrays, _LABELS)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    whole = labels.astype(np.int64) if labels.dtype.kind in "iubf" else None
    if whole is None or not np.array_equal(whole, labels):
        raise DataError(
            f"Expected labels in {path} that are numbers of classes from 0 on, but got {labels.dtype}"
            + (f" such as {labels.reshape(-1)[0]}" if labels.size else ""),
            hint=f"{CLASSES_FILE} beside it names the classes, one per line",
        )
    if images.ndim == 0:
        raise DataError(f"Expected images in {path}, but got a single number", hint=_FORMS)
    return images, whole.reshape(-1)


def _first(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], names: tuple[str, ...]) -> np.ndarray[Any, Any]:
    found = next((arrays[name] for name in names if name in arrays), None)
    if found is None:
        raise DataError(f"Expected {names[0]!r} in {path}, but got {', '.join(arrays) or 'nothing'}", hint=_FORMS)
    return found


def _decode_all(path: Path, data: np.ndarray[Any, Any], offset: np.ndarray[Any, Any]) -> Pixels:
    """Decode concatenated image files to RGB; file i is `data[offset[i]:offset[i + 1]]`."""
    whole = data.dtype == np.uint8 and offset.dtype.kind in "iu" and offset.ndim == 1 and len(offset) > 1
    if not whole or offset[0] != 0 or offset[-1] != data.size:
        raise DataError(f"Expected offsets in {path} to run from 0 to {data.size}, but they do not: it is damaged")
    pixels: Pixels | None = None
    for index in range(len(offset) - 1):
        try:
            image = decode_image(data[offset[index] : offset[index + 1]].tobytes()).convert("RGB")
        except ImageError as error:
            raise DataError(f"Expected image {index} in {path} to be whole, but: {error.message}") from error
        if pixels is None:
            pixels = np.empty((len(offset) - 1, image.height, image.width, 3), np.uint8)
        if (image.height, image.width) != pixels.shape[1:3]:
            raise DataError(
                f"Expected images of one size in {path}, but image {index} is {image.height} x {image.width}"
            )
        pixels[index] = np.asarray(image)
    assert pixels is not None
    return pixels
