"""Read MNIST and Fashion-MNIST from their original idx files, gzipped or not, in any folder."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpt_deploy.data.images import ArrayImages, Split
from cpt_deploy.data.places import find_folder
from cpt_deploy.errors import DataError

_STEMS: dict[Split, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_mnist(
    name: str, split: Split, folders: Sequence[Path], classes: tuple[str, ...], *, layout: str, hint: str
) -> ArrayImages:
    """Return one split of a data set in MNIST's format.

    Args:
        name: The data set's name.
        split: "train" or "test".
        folders: Candidate folders; the files are in `layout` (torchvision's), in `raw`, or in the folder itself.
        classes: Names of the classes.
        layout: torchvision's sub-folder, such as "MNIST/raw".
        hint: How to get the data set.

    Raises:
        DataError: If a file is missing or damaged.
    """
    places = [folder / inner for inner in (layout, "raw", ".") for folder in folders]
    required = [f"{stem}.gz|{stem}" for stem in _STEMS[split]]
    found = find_folder(name, places, required, hint=hint)
    images, labels = (_read_idx(found, stem) for stem in _STEMS[split])
    if images.ndim != 3 or labels.ndim != 1:
        raise DataError(f"Expected images and labels in {found}, but got {images.ndim} and {labels.ndim} axes")
    return ArrayImages(name, split, classes, labels.astype(np.int64), images)


def _read_idx(folder: Path, stem: str) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes: 4 bytes of magic, one 32-bit size per axis, then the values."""
    path = folder / stem if (folder / stem).is_file() else folder / f"{stem}.gz"
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Expected {path} to be a whole gzip file, but got: {error}") from error
    if len(data) < 8 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 3:
        raise DataError(f"Expected {path} to be an idx file of bytes, but it begins with {data[:4].hex()!r}")
    axes = data[3]
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", axes, 4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape):
        raise DataError(f"Expected {np.prod(shape)} values in {path}, but got {values.size}: it is damaged")
    return values.reshape(shape)
