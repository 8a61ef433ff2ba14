"""What a run can learn, by the name that recipes, reports and bundles have for it."""

from typing import Any

from cpt_deploy.registry import Registry

AUTO, CLASSIFICATION, LANGUAGE_MODEL = "auto", "classification", "language-model"

tasks: Registry[Any] = Registry(
    "task",
    group="cpt_deploy.tasks",
    modules={
        CLASSIFICATION: "cpt_deploy.tasks.image_classification:TASK",
        LANGUAGE_MODEL: "cpt_deploy.tasks.text_generation:TASK",
    },
)
"""Each is a `cpt_deploy.tasks.Task`, and imported when it is asked for; packages add theirs by an entry point."""


def task_name(task: str, data: str) -> str:
    """Return the name of the task that a recipe means.

    Args:
        task: Its `data.task`.
        data: Its `data.name`, which decides where the task is "auto": the first that knows the data, or else to
            classify images.

    Raises:
        UsageError: If there is no task of this name.
    """
    if task == AUTO:
        return next((name for name in tasks.names() if tasks.get(name).knows(data)), CLASSIFICATION)
    tasks.get(task)
    return task
