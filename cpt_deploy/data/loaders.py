"""Load batches for training and evaluation, in this process or ahead of time in worker processes.

A training batch is a function of the images, the recipe, seed, epoch and index (see `batches`). So a resumed run sees
the same batches as an uninterrupted one, with any number of worker processes, and a distributed run sees their parts.
"""

import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pickle import PicklingError
from typing import Any

import torch
from torch.utils.data import DataLoader

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data.augmentation import Augmentation
from cpt_deploy.data.batches import WHOLE, Batch, Batches, EvaluationBatches, Share, TrainingBatches
from cpt_deploy.data.fitted import FittedImages
from cpt_deploy.data.images import ImageSet
from cpt_deploy.errors import CptError, UsageError


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of training batches; an incomplete last batch is left out, unless it is the only one."""
    return max(images // batch_size, 1)


def train_loader(
    images: ImageSet | FittedImages,
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
        augment: Augmentations in order, see `build_augmentations`.
        batch_size: Images per batch; see `batches_per_epoch` for the remainder.
        seed: Seed of order and augmentation.
        epoch: Index of the epoch, from 0.
        workers: Number of loading processes, 0 for none; the batches do not depend on it.
        skip_batches: Number of batches to skip at the start of the epoch, without loading them.

    Raises:
        DataError: If an image cannot be read; the message names it.
        UsageError: If an augmentation changes the size of the images.
    """
    fitted = _fitted(images, preprocessing)
    per_epoch = batches_per_epoch(len(fitted.source), batch_size)
    yield from training_stream(
        fitted,
        augment,
        batch_size=batch_size,
        seed=seed,
        batches=range(epoch * per_epoch + skip_batches, (epoch + 1) * per_epoch),
        workers=workers,
    )


def training_stream(
    images: FittedImages,
    augment: Sequence[Augmentation],
    *,
    batch_size: int,
    seed: int,
    batches: Sequence[int],
    workers: int = 0,
    share: Share = WHOLE,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield training batches of consecutive epochs; workers continue to load across epoch boundaries.

    Args:
        images: The training images.
        augment: Augmentations in order.
        batch_size: Images per batch.
        seed: Seed of order and augmentation.
        batches: Numbers of the batches, counted over all epochs from the start of the run.
        workers: Number of loading processes, 0 for none.
        share: The part of each batch to load; each process of a distributed run loads a different part.
        pin_memory: Whether batches are in pinned memory, which a GPU can fetch while it computes.

    Raises:
        DataError: If an image cannot be read; the message names it.
        UsageError: If an augmentation changes the size of the images.
    """
    source = TrainingBatches(images, tuple(augment), batch_size, seed, share)
    return _load(source, batches, workers, pin_memory=pin_memory)


def eval_loader(
    images: ImageSet | FittedImages,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int = 0,
    share: Share = WHOLE,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield all images once, in order, each as `Preprocessing.apply` returns it; the last batch may be smaller.

    Args:
        images: The images.
        preprocessing: How they become inputs.
        batch_size: Images per batch.
        workers: Number of loading processes, 0 for none.
        share: The part of the images to load; each process of a distributed run loads a different part.
        pin_memory: Whether batches are in pinned memory, which a GPU can fetch while it computes.

    Raises:
        DataError: If an image cannot be read; the message names it.
    """
    batches = EvaluationBatches(_fitted(images, preprocessing), batch_size, share)
    yield from _load(batches, range(batches.count), workers, pin_memory=pin_memory)


def _fitted(images: ImageSet | FittedImages, preprocessing: Preprocessing) -> FittedImages:
    return images if isinstance(images, FittedImages) else FittedImages(images, preprocessing)


def _load(batches: Batches, numbers: Iterable[int], workers: int, *, pin_memory: bool) -> Iterator[Batch]:
    # A separate generator, because the loader draws a seed for its workers, by default from torch's global generator.
    own = torch.Generator()
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        generator=own,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=pin_memory,
    )
    for item in _started(loader):
        if isinstance(item, CptError):
            raise item
        yield item


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the batches of a loader, whose processes are started now."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")
            return iter(loader)
    # What pickle raises depends on the object, and on Python's version.
    except (PicklingError, AttributeError, TypeError) as error:
        if loader.num_workers == 0:
            raise
        raise UsageError(
            f"Expected data that processes which load it can be given, but got: {error}",
            hint="define its functions and classes at the top level of a file, or use no processes: data.workers=0",
        ) from error


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ignore Ctrl-C and a service manager's SIGTERM, which reach all processes of a group.

    A worker that such a signal kills would end the run before its state is saved. Workers end with the main process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
