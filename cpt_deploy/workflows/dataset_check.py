"""Check a data set of images, and report its content and its errors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.errors import DataError
from cpt_deploy.tasks import SILENT, Reporter

if TYPE_CHECKING:
    from cpt_deploy.data import Findings


def check_dataset(name: str, root: Path | None = None, *, reporter: Reporter = SILENT) -> "Findings":
    """Decode all images of a data set.

    Args:
        name: A folder, or another data set as in `data.name` of a recipe.
        root: Folder of a known data set.
        reporter: Receives messages and progress.

    Raises:
        DataError: If there is no such data set.
    """
    from cpt_deploy.data import image_folder, inspect_folder, inspect_images, load_images

    with reporter.bar("decoding", 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.advance(done, total)

        folder = image_folder(name, root)
        if folder is not None:
            return inspect_folder(folder, progress)
        images: dict[Any, Any] = {"test": load_images(name, split="test", root=root)}
        try:
            images = {"train": load_images(name, split="train", root=root), **images}
        except DataError as error:  # a test set without a training set
            reporter.note(error.message)
        return inspect_images(images, progress)
