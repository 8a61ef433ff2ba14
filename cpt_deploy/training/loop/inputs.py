"""The batches of a run: those that it trains on, and those that its model is settled on afterwards."""

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


def settling_inputs(
    recipe: Recipe,
    preprocessing: Preprocessing,
    images: ImageSet | FittedImages | None = None,
    *,
    workers: int = 0,
    share: Share = WHOLE,
) -> Iterator[Tensor]:
    """Yield the inputs that settling sees: training batches, as augmented, of the epochs after the run's last one.

    Args:
        recipe: The run's settings; `train.settle_batches` is how many there are, at least 1.
        preprocessing: How an image becomes an input.
        images: The training images; the recipe's are loaded if None.
        workers: Loading processes.
        share: Which of the batches: each process of a distributed run has others.

    Raises:
        DataError: If the data set or an image cannot be read.
    """
    if images is None:
        images = recipe_images(recipe.data, "train")
    fitted = images if isinstance(images, FittedImages) else FittedImages(images, preprocessing)
    per_epoch = batches_per_epoch(len(fitted.source), recipe.train.batch_size)
    first = -(-recipe.train.total_steps(per_epoch) // per_epoch) * per_epoch
    augment = build_augmentations([(step.name, step.parameters) for step in recipe.data.augment], preprocessing.size)
    numbers = range(first + share.index, first + max(recipe.train.settle_batches, 1), share.count)
    for inputs, _ in training_stream(
        fitted, augment, batch_size=recipe.train.batch_size, seed=recipe.seed, batches=numbers, workers=workers
    ):
        yield inputs
