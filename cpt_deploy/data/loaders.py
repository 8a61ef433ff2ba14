"""Batches for training and evaluation, loaded here or by worker processes ahead of time.

A training batch is a function of the images, the recipe, seed, epoch and index (see `batches`). So a resumed run sees
the batches that an uninterrupted one would, with any number of worker processes, and a distributed run their parts.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data.augmentation import Augmentation
from cpt_deploy.data.batches import WHOLE, Batch, Batches, EvaluationBatches, Share, TrainingBatches
from cpt_deploy.data.fitted import FittedImages
from cpt_deploy.data.images import ImageSet
from cpt_deploy.errors import CptError


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of training batches; an incomplete last one is left out, unless it is the only one."""
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
    """Yield training batches of one epoch after the other; workers go on loading across the border of epochs.

    Args:
        images: The training images.
        augment: Augmentations in their order.
        batch_size: Images a batch.
        seed: Seed of order and augmentation.
        batches: Numbers of the batches, counted through all epochs from the run's beginning.
        workers: Loading processes, 0 for none.
        share: The part of each batch to load: another part of the same batch in each process of a distributed run.
        pin_memory: Whether batches are put where a GPU can fetch them while it computes.

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
        batch_size: Images a batch.
        workers: Loading processes, 0 for none.
        share: Which of the images: each process of a distributed run has others.
        pin_memory: Whether batches are put where a GPU can fetch them while it computes.

    Raises:
        DataError: If an image cannot be read; the message names it.
    """
    batches = EvaluationBatches(_fitted(images, preprocessing), batch_size, share)
    yield from _load(batches, range(batches.count), workers, pin_memory=pin_memory)


def _fitted(images: ImageSet | FittedImages, preprocessing: Preprocessing) -> FittedImages:
    return images if isinstance(images, FittedImages) else FittedImages(images, preprocessing)


def _load(batches: Batches, numbers: Iterable[int], workers: int, *, pin_memory: bool) -> Iterator[Batch]:
    # With a generator of its own: it draws a seed for its workers, and would take it from torch's.
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
