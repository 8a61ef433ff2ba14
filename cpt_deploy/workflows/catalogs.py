"""The models and data that the tasks know by name."""

from pathlib import Path

from cpt_deploy.errors import UsageError
from cpt_deploy.recipe.tasks import tasks
from cpt_deploy.registry import nearest_names
from cpt_deploy.tasks import DataEntry, ModelEntry, ModelSize, task_named


def known_models(
    pattern: str | None = None,
    size: ModelSize = ModelSize(),  # noqa: B008  it is frozen
    *,
    counted: bool = True,
) -> list[ModelEntry]:
    """Return the models that recipes can name, with their sizes.

    Args:
        pattern: Shell pattern of names; None is the project's own models.
        size: Sizes of inputs and outputs.
        counted: Whether parameters and multiply-accumulates are counted, which builds each model.

    Raises:
        UsageError: If no model matches.
    """
    every = [task_named(name) for name in tasks.names()]
    found = [(task, name) for task in every for name in task.model_names(pattern)]
    if not found:
        known = [name for task in every for name in task.model_names("*")]
        raise UsageError(
            f"Expected a pattern that matches a model, but got {pattern!r}", hint=nearest_names(pattern or "", known)
        )
    return [task.describe_model(name, size) if counted else ModelEntry(name, task.name) for task, name in found]


def known_data(pattern: str = "*") -> list[DataEntry]:
    """Return the data that recipes can name, and whether they can be read here.

    Raises:
        UsageError: If no name matches the shell pattern.
    """
    found = [entry for name in tasks.names() for entry in task_named(name).known_data(pattern)]
    if not found:
        known = [entry.name for name in tasks.names() for entry in task_named(name).known_data("*")]
        hint = nearest_names(pattern, known)
        raise UsageError(f"Expected a pattern that matches a data set, but got {pattern!r}", hint=hint)
    return found


def fetch_data(name: str, root: Path | None = None) -> Path:
    """Download a data set and return its folder.

    Raises:
        UsageError: If there is no such data set, or it cannot be downloaded.
        DataError: If the download fails.
    """
    from cpt_deploy.data import datasets, fetch_dataset

    if name not in datasets.names():
        for entry in known_data(name):
            raise UsageError(f"Expected a data set that can be downloaded, but got {name!r}", hint=entry.obtain)
    return fetch_dataset(name, root)
