"""Recipes: the settings of a training run, their defaults, presets, files and overrides. Imports no torch."""

from cpt_deploy.recipe.experiments import Experiment, ExperimentCost, Figure, experiments
from cpt_deploy.recipe.fields import Every, parse_every
from cpt_deploy.recipe.grid import GridPoint, load_grid
from cpt_deploy.recipe.loading import load_recipe, preset_names, preset_path, recipe_text, save_recipe
from cpt_deploy.recipe.precision import GroupSettings, PrecisionSettings, ProgressiveSettings
from cpt_deploy.recipe.schema import (
    AugmentStep,
    DataSettings,
    InputSettings,
    LearningRateSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    SwaSettings,
    TextSettings,
    TrainSettings,
)
from cpt_deploy.recipe.smoke import smoke_recipe

__all__ = [
    "AugmentStep",
    "DataSettings",
    "Every",
    "Experiment",
    "ExperimentCost",
    "Figure",
    "GridPoint",
    "GroupSettings",
    "InputSettings",
    "LearningRateSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PrecisionSettings",
    "ProgressiveSettings",
    "Recipe",
    "SwaSettings",
    "TextSettings",
    "TrainSettings",
    "experiments",
    "load_grid",
    "load_recipe",
    "parse_every",
    "preset_names",
    "preset_path",
    "recipe_text",
    "save_recipe",
    "smoke_recipe",
]
