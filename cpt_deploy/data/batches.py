"""Load a batch by number: its contents depend only on the images, the recipe, the seed and the number."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cpt_deploy.bundle.processors.images import to_eight_bit
from cpt_deploy.data.augmentation import Augmentation
from cpt_deploy.data.fitted import FittedImages
from cpt_deploy.data.images import Pixels
from cpt_deploy.errors import CptError, UsageError
from cpt_deploy.registry import import_files, imported_files

Batch = tuple[Tensor, Tensor]
"""Inputs, float32 (N, C, H, W), and labels, int64 (N,)."""


@dataclass(frozen=True)
class Share:
    """The part of each batch that one process of a distributed run loads.

    Args:
        index: Index of the part, from 0.
        count: Number of parts.
    """

    index: int = 0
    count: int = 1

    def of(self, length: int) -> slice:
        """Return the part of a batch; the parts are contiguous, in order, and differ by at most one in length."""
        return slice(length * self.index // self.count, length * (self.index + 1) // self.count)


WHOLE = Share()


class Batches(Dataset[Any]):
    """Batches by number. Errors are returned, not raised: a worker would wrap them in a printed traceback."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Images and augmentations may be of classes in the user's files, which have to be imported before these.
        return _unpickled, (type(self), imported_files()), self.__dict__

    def __getitem__(self, index: int) -> Batch | CptError:
        try:
            return self.load(index)
        except CptError as error:
            return error

    def load(self, index: int) -> Batch:
        """Return one batch.

        Raises:
            DataError: If an image cannot be read; the message names it.
        """
        raise IndexError(index)


def _unpickled(kind: type[Batches], files: tuple[Path, ...]) -> Batches:
    """Return batches that are about to get their attributes."""
    import_files(files)
    return kind.__new__(kind)


class EvaluationBatches(Batches):
    """Batches of all images once, in order.

    Args:
        images: The images, fitted to the model's input.
        batch_size: Images per batch; the last batch may have fewer.
        share: The part of the images to load.
    """

    def __init__(self, images: FittedImages, batch_size: int, share: Share) -> None:
        self.images, self.batch_size = images, batch_size
        part = share.of(len(images.source))
        self.chosen = np.arange(part.start, part.stop)
        self.count = -(-len(self.chosen) // batch_size)

    def load(self, index: int) -> Batch:
        """Return one batch, see `Batches.load`."""
        chosen = self.chosen[index * self.batch_size : (index + 1) * self.batch_size]
        inputs = self.images.preprocessing.normalize(self.images.pick(chosen))
        return torch.from_numpy(inputs), torch.from_numpy(self.images.source.labels[chosen])


class TrainingBatches(Batches):
    """Shuffled, augmented batches, numbered consecutively over all epochs.

    Args:
        images: The images, fitted to the model's input.
        augment: Augmentations in order.
        batch_size: Images per batch; an incomplete last batch is left out, unless it is the only one.
        seed: Seed of order and augmentation.
        share: The part of each batch to load.
    """

    def __init__(
        self, images: FittedImages, augment: tuple[Augmentation, ...], batch_size: int, seed: int, share: Share
    ) -> None:
        self.images, self.augment, self.seed, self.share = images, augment, seed, share
        self.batch_size = min(batch_size, len(images.source))
        self.per_epoch = len(images.source) // self.batch_size
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def load(self, index: int) -> Batch:
        """Return the share of one batch, see `Batches.load`.

        Raises:
            UsageError: If an augmentation changes the size of the images.
        """
        epoch, number = divmod(index, self.per_epoch)
        part = self.share.of(self.batch_size)
        chosen = self._order_of(epoch)[number * self.batch_size : (number + 1) * self.batch_size][part]
        if any(step.sizes for step in self.augment):
            pixels: Tensor | list[Tensor] = [_channels_first(self._whole(int(i))) for i in chosen]
        else:
            pixels = _channels_first(self.images.pick(chosen))
        size = self.images.preprocessing.size
        with _generators_kept():
            _seed_generators(_mix(self.seed, epoch, number))
            for place, step in enumerate(self.augment):
                pixels = self._augmented(pixels, step, part, (self.seed, epoch, number, place))
        if isinstance(pixels, list) or tuple(pixels.shape[-2:]) != size:
            names = ", ".join(step.name for step in self.augment)
            raise UsageError(f"Expected augmentations that end at size {size}, but got {names}")
        inputs = self.images.preprocessing.normalize(pixels.permute(0, 2, 3, 1).numpy())
        return torch.from_numpy(inputs), torch.from_numpy(self.images.source.labels[chosen])

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            self._order = (epoch, torch.randperm(len(self.images.source), generator=generator).numpy())
        return self._order[1]

    def _augmented(
        self, pixels: Tensor | list[Tensor], step: Augmentation, part: slice, seeds: tuple[int, ...]
    ) -> Tensor | list[Tensor]:
        if isinstance(pixels, Tensor) and step.batch is not None:
            return step.batch(pixels, part, self.batch_size)
        varied = []
        for position, image in enumerate(pixels, start=part.start):
            _seed_generators(_mix(*seeds, position))  # the same augmentation in any part of the batch
            varied.append(step.one(image))
        _seed_generators(_mix(*seeds))  # also for the steps that follow
        return torch.stack(varied) if len({image.shape for image in varied}) == 1 else varied

    def _whole(self, index: int) -> Pixels:
        """Return an image at its original size, uint8 (H, W, C), with the input's number of channels."""
        image = self.images.source.image(index)
        picture = to_eight_bit(image) if isinstance(image, Image.Image) else Image.fromarray(image)
        pixels = np.array(picture.convert("L" if self.images.preprocessing.channels == 1 else "RGB"))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).movedim(-1, -3)


def _mix(*numbers: int) -> int:
    """Hash numbers to a seed of 63 bits; unlike with sums, similar inputs give unrelated seeds."""
    text = ",".join(str(number) for number in numbers).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _seed_generators(seed: int) -> None:
    """Seed all generators that augmentations can draw from."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the state of all generators that augmentations can draw from."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
