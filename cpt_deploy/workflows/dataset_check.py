"""Check a data set by reading all of its samples, and report its content and its problems."""

from pathlib import Path

from cpt_deploy.recipe.tasks import AUTO, task_name
from cpt_deploy.tasks import SILENT, DataCheck, Reporter, task_named


def check_dataset(name: str, root: Path | None = None, *, task: str = AUTO, reporter: Reporter = SILENT) -> DataCheck:
    """Read all samples of a data set.

    Args:
        name: A path, or another data set as in `data.name` of a recipe.
        root: Folder of a known data set.
        task: The task that it is for, as in `data.task` of a recipe.
        reporter: Receives messages and progress.

    Raises:
        DataError: If there is no such data set.
        UsageError: If its task has no check.
    """
    return task_named(task_name(task, name)).check_data(name, root, reporter)
