"""Grids of experiments: recipes × variants × values of settings × seeds, one run per combination."""

import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from cpt_deploy.errors import DataError, RecipeError, UsageError
from cpt_deploy.invalid_values import place_of, problem_of
from cpt_deploy.recipe.fields import Settings
from cpt_deploy.recipe.loading import load_recipe, recipe_path
from cpt_deploy.recipe.schema import Recipe
from cpt_deploy.registry import nearest_names

GRID_RUNS = "runs"
"""Folder of the runs in the directory of a grid."""


class GridSettings(Settings):
    """The contents of a grid file.

    `recipes` are presets or files, relative to the grid's folder. `common` are settings of all runs, by their full
    keys. `variants` are named sets of settings; each run uses one. `vary` lists several values for single settings;
    all combinations are run.
    """

    recipes: Annotated[tuple[str, ...], Field(min_length=1)]
    common: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)


@dataclass(frozen=True)
class GridPoint:
    """One run of a grid.

    Args:
        name: Its name, also that of its directory.
        source: Preset or recipe file.
        overrides: Its settings as `key=value`.
        recipe: The recipe with the overrides applied.
    """

    name: str
    source: str
    overrides: tuple[str, ...]
    recipe: Recipe


def load_grid(path: Path) -> list[GridPoint]:
    """Read a grid file and check that each of its recipes is valid.

    Raises:
        DataError: If the file cannot be read.
        RecipeError: If it is not a grid, or a recipe is invalid.
        UsageError: If two runs would have the same name, or a preset does not exist.
    """
    settings = _read(path)
    _check_keys(settings, path)
    points = []
    variants = settings.variants or {"": {}}
    values = [[(key, value) for value in choices] for key, choices in settings.vary.items()]
    for source, variant, chosen, seed in itertools.product(
        settings.recipes, variants, itertools.product(*values), settings.seeds
    ):
        parts = [Path(source).stem] if len(settings.recipes) > 1 else []
        parts += [variant] if variant else []
        parts += [f"{key.rpartition('.')[2]}{_text(value)}" for key, value in chosen]
        name = _safe("-".join([*parts, f"seed{seed}"]))
        wanted = {**settings.common, **variants[variant], **dict(chosen), "seed": seed, "name": name}
        points.append(_point(name, _found(source, path.parent), wanted))
    names = [point.name for point in points]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"Expected runs of different names in {path}, but got {', '.join(twice)} more than once")
    return points


def _check_keys(settings: GridSettings, path: Path) -> None:
    """Make sure that no setting takes the place of another one without a word."""
    sections = {"common": settings.common, "vary": settings.vary}
    sections |= {f"variants.{name}": variant for name, variant in settings.variants.items()}
    for where, given in sections.items():
        for key, value in given.items():
            if key in {"seed", "name"}:
                raise UsageError(
                    f"Expected no {key} in {where} of {path}, since each run of a grid gets its own",
                    hint="list the seeds: `seeds: [0, 1, 2]`" if key == "seed" else "runs are named by what varies",
                )
            values = value if where == "vary" else [value]
            if key in Recipe.model_fields and any(isinstance(each, Mapping) for each in values):
                raise UsageError(
                    f"Expected single settings in {where} of {path}, such as train.epochs, but got the whole of {key}, "
                    "which would replace all of the recipe's"
                )
    for name, variant in settings.variants.items():
        both = sorted(variant.keys() & settings.vary.keys())
        if both:
            raise UsageError(f"Expected {both[0]} in variants.{name} or in vary of {path}, but got it in both")


def _point(name: str, source: str, settings: Mapping[str, Any]) -> GridPoint:
    overrides = tuple(f"{key}={_text(value)}" for key, value in settings.items())
    return GridPoint(name, source, overrides, load_recipe(source, overrides))


def _found(source: str, folder: Path) -> str:
    """Return a preset's name, or the path of a recipe file that is given relative to the grid's folder."""
    beside = folder / source
    return str(beside) if beside.is_file() else str(recipe_path(source)) if "/" in source else source


def _text(value: Any) -> str:
    # Not JSON, whose 1e-05 is a text in YAML.
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).removesuffix("\n").removesuffix("\n...")


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")


def _read(path: Path) -> GridSettings:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected a readable grid at {path}, but got: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"Expected YAML in {path}, but got: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"Expected {path} to hold a grid as 'key: value', but got a {type(values).__name__}")
    try:
        return GridSettings.model_validate(values)
    except ValidationError as error:
        problems = [_describe(dict(entry)) for entry in error.errors()]
        raise RecipeError(f"Expected a valid grid in {path}, but got:\n  " + "\n  ".join(problems)) from error


def _describe(entry: Mapping[str, Any]) -> str:
    key = place_of(entry)
    if entry["type"] == "extra_forbidden":
        return f"{key}: unknown; {nearest_names(key, list(GridSettings.model_fields))}"
    return f"{key}: {problem_of(entry)}"
