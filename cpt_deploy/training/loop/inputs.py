"""Calibration batches of a run: training batches of the epochs after its last one."""

from collections.abc import Iterator

from torch import Tensor

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data import (
    WHOLE,
    FittedImages,
    ImageSet,
    Share,
    batches_per_epoch,
    build_augmentations,
    recipe_images,
    training_stream,
)
from cpt_deploy.recipe import Recipe


def calibration_inputs(
    recipe: Recipe,
    preprocessing: Preprocessing,
    images: ImageSet | FittedImages | None = None,
    *,
    workers: int = 0,
    share: Share = WHOLE,
) -> Iterator[Tensor]:
    """Yield the inputs of calibration: augmented training batches of the epochs after the run's last one.

    Args:
        recipe: The run's settings; `train.calibration_batches` is the number of batches, at least 1.
        preprocessing: How an image becomes an input.
        images: The training images; the recipe's are loaded if None.
        workers: Number of loading processes.
        share: Share of the batches; differs between the processes of a distributed run.

    Raises:
        DataError: If the data set or an image cannot be read.
    """
    if images is None:
        images = recipe_images(recipe.data, "train")
    fitted = images if isinstance(images, FittedImages) else FittedImages(images, preprocessing)
    per_epoch = batches_per_epoch(len(fitted.source), recipe.train.batch_size)
    first = -(-recipe.train.total_steps(per_epoch) // per_epoch) * per_epoch
    augment = build_augmentations([(step.name, step.parameters) for step in recipe.data.augment], preprocessing.size)
    numbers = range(first + share.index, first + max(recipe.train.calibration_batches, 1), share.count)
    for inputs, _ in training_stream(
        fitted, augment, batch_size=recipe.train.batch_size, seed=recipe.seed, batches=numbers, workers=workers
    ):
        yield inputs
