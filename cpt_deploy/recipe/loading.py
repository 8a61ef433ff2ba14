"""Load recipes: defaults, then a preset or a file, then `key=value` overrides; all mistakes are reported at once."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cpt_deploy.errors import DataError, RecipeError, UsageError
from cpt_deploy.invalid_values import place_of, problem_of
from cpt_deploy.recipe.experiments import experiments
from cpt_deploy.recipe.schema import Recipe
from cpt_deploy.registry import nearest_names

_PRESETS = Path(__file__).parent / "presets"
_SUFFIXES = {".yaml", ".yml"}


class _RecipeDumper(yaml.SafeDumper):
    """Writes each list on one line."""


_RecipeDumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def preset_names(pattern: str = "*") -> list[str]:
    """Return the names of the package's own recipes that match a shell pattern: files, then experiments."""
    names = [*sorted(path.stem for path in _PRESETS.glob("*.yaml")), *experiments()]
    return [name for name in names if fnmatchcase(name, pattern)]


def preset_path(name: str) -> Path:
    """Return the file of a preset, to be read or copied; for an experiment, the table that defines it.

    Raises:
        UsageError: If the preset does not exist; the hint has the nearest names.
    """
    if name not in preset_names():
        raise UsageError(f"Expected a known preset, but got {name!r}", hint=nearest_names(name, preset_names()))
    if name in experiments():
        return experiments()[name].table
    return _PRESETS / f"{name}.yaml"


def load_recipe(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: The name of a preset, a YAML file, or `None` for the defaults.
        overrides: Settings such as "train.epochs=3" or "data.augment.0.padding=2"; values are YAML. Setting
            `train.steps` or `train.epochs` replaces the other one.

    Raises:
        RecipeError: If settings are invalid; the message lists all of them, with line numbers and similar names.
        UsageError: If the preset does not exist.
        DataError: If the file cannot be read.
    """
    values: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    problems: list[str] = []
    if isinstance(source, str) and source in experiments():
        values = copy.deepcopy(dict(experiments()[source].values))
    elif source is not None:
        path = recipe_path(source)
        values, lines, problems = _read_yaml(path)
    for override in overrides:
        problem = _override(values, override)
        if problem is not None:
            problems.append(problem)
        lines.pop(tuple(override.partition("=")[0].split(".")), None)  # an overridden value is not the file's
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_describe(dict(entry), lines) for entry in error.errors()]
    if problems:
        count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        where = f" from {source}" if source is not None else ""
        raise RecipeError(f"Expected a valid recipe{where}, but {count} wrong:\n  " + "\n  ".join(problems))
    return recipe


def recipe_text(recipe: Recipe | Mapping[str, Any]) -> str:
    """Return a recipe, or the values of one, as YAML with every setting."""
    values = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)
    return yaml.dump(values, Dumper=_RecipeDumper, sort_keys=False, width=120)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML with every setting; `load_recipe` reads it back unchanged.

    The file is written atomically.

    Raises:
        DataError: If the file cannot be written.
    """
    text = f"# cpt train {path}\n" + recipe_text(recipe)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"Expected to write the recipe to {path}, but got: {error.strerror or error}") from error


def recipe_path(source: str | Path) -> Path:
    """Return the file of a preset or a path.

    Raises:
        UsageError: If the preset does not exist.
        DataError: If the file does not exist.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        raise UsageError(
            f"Expected a preset or a recipe, but got {path}",
            hint=f"cpt train RECIPE model.name=onnx:{path} begins with the network and the weights of an ONNX file",
        )
    if isinstance(source, Path) or path.suffix in _SUFFIXES or len(path.parts) > 1:
        if not path.is_file():
            raise DataError(f"Expected a recipe file at {path}, but found none", hint="presets are named without .yaml")
        return path
    return preset_path(source)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int], list[str]]:
    """Return the settings of a file, the line of each, and problems such as duplicate keys."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected a readable recipe at {path}, but got: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"Expected YAML in {path}, but got: {' '.join(str(error).split())}") from error
    if values is None:
        return {}, {}, []
    if not isinstance(values, dict):
        raise RecipeError(f"Expected {path} to hold settings as 'key: value', but got a {type(values).__name__}")
    lines: dict[tuple[str, ...], int] = {}
    problems = []
    for key, line in _walk(node, ()):
        if key in lines:
            problems.append(f"{'.'.join(key)} (line {line}): given twice, first in line {lines[key]}")
        lines[key] = line
    return values, lines, problems


def _walk(node: yaml.Node | None, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _walk(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            path = (*prefix, str(index))
            yield path, value.start_mark.line + 1
            yield from _walk(value, path)


def _override(values: dict[str, Any], override: str) -> str | None:
    """Apply one `key=value` override; return a description of the problem, or None."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return f"{override}: expected the form section.key=value"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return f"{override}: expected a YAML value, but got {text!r}"
    target: Any = values
    for depth, part in enumerate(parts[:-1]):
        target = _child(target, part)
        if target is None:
            return f"{override}: {'.'.join(parts[: depth + 1])} is a value, not a section"
    if isinstance(target, list):
        if not (parts[-1].isdigit() and int(parts[-1]) < len(target)):
            return f"{override}: expected an index below {len(target)}, but got {parts[-1]!r}"
        target[int(parts[-1])] = value
    else:
        target[parts[-1]] = value
    if parts in (["train", "steps"], ["train", "epochs"]) and value is not None:
        target.pop("epochs" if parts[-1] == "steps" else "steps", None)
    return None


def _child(target: Any, part: str) -> Any:
    """Return the section or list element `part` of `target`, created if missing; `None` if it cannot exist."""
    if isinstance(target, list):
        child = target[int(part)] if part.isdigit() and int(part) < len(target) else None
    else:
        if target.get(part) is None:
            target[part] = {}
        child = target[part]
    return child if isinstance(child, dict | list) else None


def _describe(entry: Mapping[str, Any], lines: Mapping[tuple[str, ...], int]) -> str:
    """Format one of pydantic's errors as one line: the key, its line, the problem, and similar keys."""
    location, key = tuple(map(str, entry["loc"])), place_of(entry) or "recipe"
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), None)
    where = f"{key} (line {line})" if line is not None and location in lines else key
    if entry["type"] == "extra_forbidden":
        return f"{where}: unknown setting; {_nearest_keys(location)}"
    return f"{where}: {problem_of(entry)}"


def _nearest_keys(location: tuple[str, ...]) -> str:
    """Suggest keys for an unknown one: similar keys of its section, otherwise equal or similar keys of any section."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if not part.isdigit():  # a digit is an index into a list of sections
            section = _section_in(section.model_fields[part].annotation) or section
    *parents, wrong = location
    known = list(section.model_fields)
    if not difflib.get_close_matches(wrong, known, n=1, cutoff=0.6):
        everywhere = {path.rpartition(".")[2]: path for path in _all_keys(Recipe, "")}
        elsewhere = difflib.get_close_matches(wrong, list(everywhere), n=2, cutoff=0.8)
        if elsewhere:
            return f"did you mean {', '.join(everywhere[name] for name in elsewhere)}?"
    near = difflib.get_close_matches(wrong, known, n=4, cutoff=0.5)
    if not near:
        return nearest_names(wrong, known)
    return f"did you mean {', '.join('.'.join((*parents, name)) for name in near)}?"


def _all_keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class that a type is or contains, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
