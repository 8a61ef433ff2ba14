"""Open the images that a recipe names, with its `skip_bad` and `limit` applied."""

from pathlib import Path

from cpt_deploy.data.images import ImageSet, Split, limited
from cpt_deploy.data.inspection import without_bad
from cpt_deploy.data.registry import load_images
from cpt_deploy.recipe import DataSettings


def recipe_images(settings: DataSettings, split: Split) -> ImageSet:
    """Open one split of a recipe's data set.

    Raises:
        UsageError: If the name is unknown.
        DataError: If files are missing or damaged.
    """
    root = None if settings.root is None else Path(settings.root).expanduser()
    images = load_images(settings.name, split=split, root=root)
    return limited(without_bad(images) if settings.skip_bad else images, settings.limit)
