"""Recipes: the settings of a training run, their defaults, presets, files and overrides. Imports no torch."""

from cpt_deploy.recipe.experiments import Experiment, experiments
from cpt_deploy.recipe.fields import interval_steps
from cpt_deploy.recipe.grid import GridPoint, load_grid
from cpt_deploy.recipe.loading import load_recipe, preset_names, recipe_text, save_recipe
from cpt_deploy.recipe.schema import (
    DataSettings,
    InputSettings,
    LearningRateSettings,
    OptimizerSettings,
    Recipe,
    SwaSettings,
)
from cpt_deploy.recipe.smoke import smoke_recipe, with_made_up_data

__all__ = [
    "DataSettings",
    "Experiment",
    "GridPoint",
    "InputSettings",
    "LearningRateSettings",
    "OptimizerSettings",
    "Recipe",
    "SwaSettings",
    "experiments",
    "interval_steps",
    "load_grid",
    "load_recipe",
    "preset_names",
    "recipe_text",
    "save_recipe",
    "smoke_recipe",
    "with_made_up_data",
]
