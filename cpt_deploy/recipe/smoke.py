"""Reduce a recipe to a few steps on the CPU: the same network, data, schedules and files, but no useful accuracy."""

from pathlib import Path

from cpt_deploy.recipe.schema import Recipe

MADE_UP = "made-up-"
"""Prefix of data names: `made-up-cifar100` are random images of CIFAR-100's size with as many classes."""

STEPS = 2
BATCH = 2
IMAGES = 4


def smoke_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe that runs in seconds and exercises every part of a run: training, calibration, evaluation.

    Args:
        recipe: The recipe to reduce.
    """
    precision, train = recipe.precision, recipe.train
    groups = tuple(group.model_copy(update={"cycles": 1}) for group in precision.groups)
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-smoke",
            "data": recipe.data.model_copy(update={"limit": IMAGES, "workers": 0}),
            "precision": precision.model_copy(update={"cycles": 1, "grad_cycles": 1, "groups": groups}),
            "lr": recipe.lr.model_copy(update={"warmup_steps": 0}),
            "train": train.model_copy(
                update={
                    "epochs": None,
                    "steps": STEPS,
                    "batch_size": BATCH,
                    "eval_batch_size": IMAGES,
                    "eval_every": None,
                    "checkpoint_every": None,
                    "log_every": 1,
                    "calibration_batches": 1,
                    "device": "cpu",
                    "cuda_graph": False,
                }
            ),
        }
    )


def with_made_up_data(recipe: Recipe) -> Recipe:
    """Return a recipe on made-up samples of the shape of its data."""
    name = MADE_UP + Path(recipe.data.name).name
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": name, "root": None})})
