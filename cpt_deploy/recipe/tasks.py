"""The tasks of runs, by the names that recipes, reports and bundles have for them: pipeline tags of Hugging Face."""

from typing import Any

from cpt_deploy.registry import Registry

AUTO, IMAGE_CLASSIFICATION, TEXT_GENERATION = "auto", "image-classification", "text-generation"

tasks: Registry[Any] = Registry(
    "task",
    group="cpt_deploy.tasks",
    modules={
        IMAGE_CLASSIFICATION: "cpt_deploy.tasks.image_classification:TASK",
        TEXT_GENERATION: "cpt_deploy.tasks.text_generation:TASK",
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
        return next((name for name in tasks.names() if tasks.get(name).knows(data)), IMAGE_CLASSIFICATION)
    tasks.get(task)
    return task
