"""A recipe cut down to a few steps on the CPU: the same network, data, schedules and files, but no result."""

from cpt_deploy.recipe.schema import Recipe

STEPS = 2
BATCH = 2
IMAGES = 4


def smoke_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe that runs in seconds and takes every part of the run once: training, settling, evaluation.

    Args:
        recipe: What would be trained.
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
                    "settle_batches": 1,
                    "device": "cpu",
                }
            ),
        }
    )
