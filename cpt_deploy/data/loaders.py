"""Batches for training and evaluation. A training batch is a function of the images, the recipe, seed, epoch and index.

So a resumed run sees the batches that an uninterrupted one would, with any number of worker processes.
"""

import hashlib
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.bundle.images import to_eight_bit
from cpt_deploy.data.augmentation import Augmentation
from cpt_deploy.data.images import ArrayImages, ImageSet, Pixels
from cpt_deploy.errors import CptError, UsageError

Batch = tuple[Tensor, Tensor]
"""Inputs, float32 (N, C, H, W), and labels, int64 (N,)."""


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of training batches; an incomplete last one is left out, unless it is the only one."""
    return max(images // batch_size, 1)


def train_loader(
    images: ImageSet,
    preprocessing: Preprocessing,
    augment: Sequence[Augmentation],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    workers: int = 0,
    skip_batches: int = 0,
) -> Iterator[Batch]:
    """Yield one epoch of shuffled, augmented batches.

    Args:
        images: The training images.
        preprocessing: Scales and crops before augmentation (unless an augmentation does), normalises after it.
        augment: Augmentations in their order, see `build_augmentations`.
        batch_size: Images a batch; see `batches_per_epoch` for the remainder.
        seed: Seed of order and augmentation.
        epoch: Which epoch, from 0.
        workers: Loading processes, 0 for none; the batches do not depend on it.
        skip_batches: How many batches at the epoch's start to leave out, without loading them.

    Raises:
        DataError: If an image cannot be read; the message names it.
        UsageError: If an augmentation changes the size of the images.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_mix(seed, epoch)))
    batches = _TrainBatches(images, preprocessing, tuple(augment), order.numpy(), batch_size, (seed, epoch))
    indices = range(skip_batches, batches_per_epoch(len(images), batch_size))
    yield from _load(batches, indices, workers)


def eval_loader(
    images: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield all images once, in order, each as `Preprocessing.apply` returns it; the last batch may be smaller.

    Raises:
        DataError: If an image cannot be read; the message names it.
    """
    batches = _EvalBatches(images, preprocessing, batch_size)
    yield from _load(batches, range(-(-len(images) // batch_size)), workers)


def _load(batches: Dataset[Any], indices: range, workers: int) -> Iterator[Batch]:
    # With a generator of its own: it draws a seed for its workers, and would take it from torch's.
    own = torch.Generator()
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        generator=own,
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    for item in loader:
        if isinstance(item, CptError):
            raise item
        yield item


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ignore Ctrl-C and a service manager's SIGTERM, which reach all processes of a group.

    A worker that dies of one takes the run down before it has saved its state; it ends when the main process does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Batches(Dataset[Any]):
    """Whole batches by index. Errors are returned, not raised: a worker would wrap them in a printed traceback."""

    def __getitem__(self, index: int) -> Batch | CptError:
        try:
            return self.load(index)
        except CptError as error:
            return error

    def load(self, index: int) -> Batch:
        raise IndexError(index)


class _EvalBatches(_Batches):
    def __init__(self, images: ImageSet, preprocessing: Preprocessing, batch_size: int) -> None:
        self.images, self.preprocessing, self.batch_size = images, preprocessing, batch_size

    def load(self, index: int) -> Batch:
        chosen = np.arange(index * self.batch_size, min((index + 1) * self.batch_size, len(self.images)))
        inputs = self.preprocessing.normalize(_fitted(self.images, self.preprocessing, chosen))
        return torch.from_numpy(inputs), torch.from_numpy(self.images.labels[chosen])


class _TrainBatches(_Batches):
    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        augment: tuple[Augmentation, ...],
        order: npt.NDArray[np.int64],
        batch_size: int,
        seeds: tuple[int, int],
    ) -> None:
        self.images, self.preprocessing, self.augment = images, preprocessing, augment
        self.order, self.batch_size, self.seeds = order, batch_size, seeds

    def load(self, index: int) -> Batch:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        if any(step.sizes for step in self.augment):
            pixels: Tensor | list[Tensor] = [_channels_first(self._whole(int(i))) for i in chosen]
        else:
            pixels = _channels_first(_fitted(self.images, self.preprocessing, chosen))
        with _seeded(_mix(*self.seeds, index)):
            for step in self.augment:
                pixels = _augmented(pixels, step)
        if isinstance(pixels, list) or tuple(pixels.shape[-2:]) != self.preprocessing.size:
            names = ", ".join(step.name for step in self.augment)
            raise UsageError(f"Expected augmentations that end at size {self.preprocessing.size}, but got {names}")
        inputs = self.preprocessing.normalize(pixels.permute(0, 2, 3, 1).numpy())
        return torch.from_numpy(inputs), torch.from_numpy(self.images.labels[chosen])

    def _whole(self, index: int) -> Pixels:
        """Return an image at its own size, uint8 (H, W, C), in the input's channels."""
        image = self.images.image(index)
        picture = to_eight_bit(image) if isinstance(image, Image.Image) else Image.fromarray(image)
        pixels = np.array(picture.convert("L" if self.preprocessing.channels == 1 else "RGB"))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _fitted(images: ImageSet, preprocessing: Preprocessing, chosen: npt.NDArray[np.int64]) -> Pixels:
    """Return images as `Preprocessing.fit` does, uint8 (N, H, W, C); arrays that fit already are only picked."""
    same_size = isinstance(images, ArrayImages) and images.size == preprocessing.size
    if isinstance(images, ArrayImages) and same_size and preprocessing.resize in {None, min(images.size)}:
        pixels = images.pixels[chosen]
        if images.channels == 1:
            return np.repeat(pixels[..., None], preprocessing.channels, axis=-1)
        if preprocessing.channels == 3:
            return pixels
    return np.stack([preprocessing.fit(images.image(int(index))) for index in chosen])


def _augmented(pixels: Tensor | list[Tensor], step: Augmentation) -> Tensor | list[Tensor]:
    if isinstance(pixels, Tensor) and step.batch is not None:
        return step.batch(pixels)
    varied = [step.one(image) for image in pixels]
    return torch.stack(varied) if len({image.shape for image in varied}) == 1 else varied


def _channels_first(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).movedim(-1, -3)


def _mix(*numbers: int) -> int:
    """Hash numbers to a seed of 63 bits; unlike sums, near inputs give unrelated seeds."""
    text = ",".join(str(number) for number in numbers).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that augmentations draw from, and give them back as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
