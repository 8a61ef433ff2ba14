"""What a run is: the settings of a training run, their defaults, presets, files and overrides. Imports no torch."""

from cpt_deploy.recipe.fields import Every, parse_every
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

__all__ = [
    "AugmentStep",
    "DataSettings",
    "Every",
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
    "load_recipe",
    "parse_every",
    "preset_names",
    "preset_path",
    "recipe_text",
    "save_recipe",
]
