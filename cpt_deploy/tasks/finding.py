"""Find the task of a run."""

from pathlib import Path

from cpt_deploy.recipe import load_recipe
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION, task_name, tasks
from cpt_deploy.tasks.interface import Task


def task_named(name: str) -> Task:
    """Return a task by its name.

    Raises:
        UsageError: If there is no task of this name.
    """
    task: Task = tasks.get(name)
    return task


def task_of_run(run_dir: Path) -> Task:
    """Return the task of a run from its recipe; without a recipe, the first task, whose reader reports the problem.

    Raises:
        RecipeError: If its recipe is damaged.
    """
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        return task_named(IMAGE_CLASSIFICATION)
    data = load_recipe(path).data
    return task_named(task_name(data.task, data.name))
