"""What a run is: the settings of a training run, their defaults, presets, files and overrides. Imports no torch."""

from cpt_deploy.recipe.loading import load_recipe, preset_names, preset_path, recipe_text, save_recipe
from cpt_deploy.recipe.schema import (
    AugmentStep,
    DataSettings,
    Every,
    InputSettings,
    LearningRateSettings,
    ModelSettings,
    OptimizerSettings,
    PrecisionSettings,
    Recipe,
    SwaSettings,
    TextSettings,
    TrainSettings,
    parse_every,
)

__all__ = [
    "AugmentStep",
    "DataSettings",
    "Every",
    "InputSettings",
    "LearningRateSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PrecisionSettings",
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
