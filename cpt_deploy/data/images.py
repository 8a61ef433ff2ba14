"""Labelled sets of 8-bit images, in memory or decoded on demand."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpt_deploy.bundle.processors.images import read_image, upright
from cpt_deploy.errors import DataError

Split = Literal["train", "test"]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """Labelled images of one split; reading an image never changes it.

    Args:
        name: The data set's name, for reports.
        split: "train" or "test".
        classes: Names of the classes; a label is an index into them.
        labels: int64 (N,).
        published: Name of the known data set that it is, whose preprocessing is published; empty if it is none.

    Raises:
        DataError: If there are no images, classes have no names of their own, or a label is not the index of a class.
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    published: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or len(self.labels) == 0:
            raise DataError(f"Expected {self.describe()} to have images, but got labels of shape {self.labels.shape}")
        wrong = next((name for name, count in Counter(self.classes).items() if count > 1 or not name.strip()), None)
        if wrong is not None:
            raise DataError(
                f"Expected a name of its own for each class of {self.describe()}, "
                f"but got {f'{wrong!r} more than once' if wrong.strip() else 'an empty one'}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"Expected labels of {self.describe()} in 0..{len(self.classes) - 1}, but got {low}..{high}",
                hint=f"{len(self.classes)} class names were found",
            )

    @abstractmethod
    def image(self, index: int) -> Pixels | Image.Image:
        """Return one image: uint8 (H, W) or (H, W, 3), or a Pillow image of mode "L" or "RGB".

        Raises:
            DataError: If the image cannot be read; the message names it.
        """

    @abstractmethod
    def _chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of all images, in order."""

    def digest(self) -> str:
        """Return the SHA-256 of class names, labels and image bytes, as 64 hexadecimal digits."""
        total = self._described()
        for chunk in self._chunks():
            total.update(chunk)
        return total.hexdigest()

    def fingerprint(self) -> str:
        """Return a digest as `digest` does, but of files only their names and sizes, so that none is read."""
        total = self._described()
        for chunk in self._marks():
            total.update(chunk)
        return total.hexdigest()

    def _described(self) -> "hashlib._Hash":
        total = hashlib.sha256("\n".join(self.classes).encode())
        total.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return total

    def _marks(self) -> Iterator[bytes | memoryview]:
        """Yield what tells the images from others, at a low cost."""
        return iter(())

    def describe(self) -> str:
        """Return name and split, for messages."""
        return f"{self.name} ({self.split})"

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageSet):
    """Images in memory, all of the same size.

    Args:
        pixels: uint8 (N, H, W) gray or (N, H, W, 3) RGB.
    """

    pixels: Pixels

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] != 3):
            raise DataError(
                f"Expected images of {self.describe()} to be uint8 (N, H, W) or (N, H, W, 3), "
                f"but got {self.pixels.dtype} {shape}"
            )
        if shape[0] != self.labels.shape[0]:
            raise DataError(
                f"Expected as many labels as images in {self.describe()}, but got {len(self.labels)} and {shape[0]}"
            )
        super().__post_init__()

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return 1 if self.pixels.ndim == 3 else 3

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def image(self, index: int) -> Pixels:
        """Return one image, uint8 (H, W) or (H, W, 3)."""
        pixels: Pixels = self.pixels[index]
        return pixels

    def _chunks(self) -> Iterator[bytes | memoryview]:
        yield repr(self.pixels.shape).encode()
        yield np.ascontiguousarray(self.pixels).data

    def _marks(self) -> Iterator[bytes | memoryview]:
        return self._chunks()


@dataclass(frozen=True, eq=False)
class FileImages(ImageSet):
    """Images in files, decoded on demand.

    Args:
        paths: One path per label.
        left_out: Number of other files in the folders, which are not read as images, by file type.
        skipped: Files that cannot be decoded and were removed, see `without_bad`.
        divided: Whether they are a part of a folder without splits, which was divided into training and test images.
    """

    paths: tuple[Path, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Path, ...] = ()
    divided: bool = False

    def image(self, index: int) -> Image.Image:
        """Decode one file; see `ImageSet.image`."""
        return read_image(self.paths[index])

    def _marks(self) -> Iterator[bytes | memoryview]:
        for path in self.paths:
            size = path.stat().st_size if path.exists() else 0
            yield f"{path.parent.name}/{path.name} {size}\n".encode()

    def _chunks(self) -> Iterator[bytes | memoryview]:
        for path in self.paths:
            try:
                yield path.read_bytes()
            except OSError as error:
                raise DataError(f"Expected a readable image at {path}, but got: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class CallableImages(ImageSet):
    """Images that a function returns, for the user's own data sets.

    Args:
        load: A function from an index to an image, as `ImageSet.image` returns it. Loading processes that are not
            forked get it pickled.
    """

    load: Callable[[int], Pixels | Image.Image]

    def image(self, index: int) -> Pixels | Image.Image:
        """Call the function; any exception becomes a `DataError` that names the image.

        An image with an EXIF orientation is turned, as one from a file is here and in the server.
        """
        try:
            image = self.load(int(index))
            return upright(image) if isinstance(image, Image.Image) else image
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"Expected {self.describe()} to give image {index}, but got {type(error).__name__}: {error}"
            ) from error

    def _chunks(self) -> Iterator[bytes | memoryview]:
        for index in range(len(self)):
            pixels = np.ascontiguousarray(np.asarray(self.image(index)))
            yield repr(pixels.shape).encode()
            yield pixels.data


def limited(images: ImageSet, limit: int | None) -> ImageSet:
    """Return at most `limit` images of a set, spread evenly over it; all of them if there is no limit."""
    if limit is None or limit >= len(images):
        return images
    chosen = np.linspace(0, len(images) - 1, limit).round().astype(np.int64)
    if isinstance(images, ArrayImages):
        return replace(images, labels=images.labels[chosen], pixels=images.pixels[chosen])
    if isinstance(images, FileImages):
        return replace(images, labels=images.labels[chosen], paths=tuple(images.paths[index] for index in chosen))
    return CallableImages(
        images.name, images.split, images.classes, images.labels[chosen], _ChosenImages(images, chosen)
    )


@dataclass(frozen=True, eq=False)
class _ChosenImages:
    """Images of a set by their place among the chosen ones."""

    images: ImageSet
    chosen: npt.NDArray[np.int64]

    def __call__(self, index: int) -> Pixels | Image.Image:
        return self.images.image(int(self.chosen[index]))
