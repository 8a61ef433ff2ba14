"""Load a finished run's network and the images on which its loss is measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.data import FittedImages, recipe_images
from cpt_deploy.data.images import Split
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION, task_name
from cpt_deploy.training import ProcessGroup, TrainedRun, choose_device, load_run

Batches = tuple[tuple[Tensor, Tensor], ...]
"""Inputs, float32 (N, C, H, W), and labels, int64 (N,)."""


@dataclass(frozen=True)
class Minimum:
    """The minimum at which training ended.

    The network is calibrated and in evaluation mode at max_bits: BatchNorm uses its running statistics and each
    activation quantizer its stored range, as in the served network.

    Args:
        path: The run's directory.
        name: The run's name.
        weights_sha256: SHA-256 of its weights.
        model: The network.
        batches: The images, in memory because they are read many times.
    """

    path: Path
    name: str
    weights_sha256: str
    model: nn.Module
    batches: Batches

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(labels) for _, labels in self.batches)


def load_minimum(
    run_dir: Path,
    *,
    split: Split = "train",
    images: int = 1000,
    seed: int = 0,
    batch_size: int = 250,
    device: str = "auto",
) -> Minimum:
    """Load a finished run and some of its images, without augmentation.

    Args:
        run_dir: The run's directory.
        split: Training or test images.
        images: Number of images; all if there are fewer.
        seed: Seed of the choice of images, which is the same for all runs on the same data set.
        batch_size: Images per batch.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        CptError: If run, data set or device cannot be used.
    """
    run = load_run(run_dir)
    task = task_name(run.recipe.data.task, run.recipe.data.name)
    if task != IMAGE_CLASSIFICATION:
        raise UsageError(f"Expected the run of an image classifier, but the task of {run_dir} is {task}")
    chosen_device = choose_device(device, ProcessGroup())
    inputs, labels = _images_of(run, split, images, seed)
    model = run.model.to(chosen_device).to(memory_format=torch.channels_last)
    if inputs.dim() == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    parts = (torch.split(tensor.to(chosen_device), batch_size) for tensor in (inputs, labels))
    return Minimum(run_dir, run.recipe.name, run.weights_sha256, model, tuple(zip(*parts, strict=True)))


def _images_of(run: TrainedRun, split: Split, count: int, seed: int) -> tuple[Tensor, Tensor]:
    settings = run.recipe.data
    # A limited run has seen no other training images; of those to test on, none.
    source = recipe_images(settings if split == "train" else settings.model_copy(update={"limit": None}), split)
    processor = run.expect_processor(ImageProcessor)
    if tuple(source.classes) != processor.labels:
        raise UsageError(
            f"Expected {settings.name} with the {len(processor.labels)} classes that {run.path} was trained on, "
            f"but it has {len(source.classes)} that differ"
        )
    order = np.random.default_rng(seed).permutation(len(source))
    chosen = np.sort(order[:count])
    pixels = FittedImages(source, processor.preprocessing).pick(chosen)
    return torch.from_numpy(processor.preprocessing.normalize(pixels)), torch.from_numpy(source.labels[chosen])


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the mean cross-entropy, without label smoothing or weight decay, and the accuracy, 0 to 1."""
    loss, correct, images = 0.0, 0, 0
    for inputs, labels in batches:
        logits = model(inputs)
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        images += len(labels)
    return loss / images, correct / images
