"""Find the run or the bundle that a user means: by its path, by the name of a run below `runs/`, one by the other."""

from pathlib import Path

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.layout import SUMS_FILE
from cpt_deploy.errors import BundleError, TrainingOnlyError, UsageError
from cpt_deploy.recipe import load_recipe
from cpt_deploy.workflows.origins import REPORT_FILE, find_run

RUNS = Path("runs")
"""Folder of the runs that are given no other place."""
RECIPE_FILE = "recipe.yaml"
"""The file that makes a directory a run."""


def run_at(given: Path) -> Path:
    """Return the directory of a run that is given by its directory, its name below `runs/`, or one of its bundles.

    Raises:
        UsageError: If a bundle is given whose run is not around it.
    """
    path = _existing(given)
    if not (path / SUMS_FILE).is_file():
        return path
    found = find_run(Bundle.open(path, verify=False))
    if found is None:
        raise UsageError(
            f"Expected a run, but {readable.path(path)} is a bundle, and the run that it was exported from is not the "
            "directory that contains it"
        )
    return found


def bundle_at(given: Path) -> Path:
    """Return a bundle that is given by its directory, or by that or the name of a run that has one bundle.

    Any other path is returned as it is.

    Raises:
        BundleError: If the run has no bundle, or a path with the suffix of an ONNX file does not exist.
        UsageError: If it has several.
        ConversionError: If the run is of the scheme "sbm", which trains only.
    """
    path = _existing(given)
    if path.suffix == ".onnx" and not path.exists():
        raise BundleError(f"Expected an ONNX file at {readable.path(path)}, but there is nothing")
    if not (path / RECIPE_FILE).is_file():
        return path
    found = sorted(entry for entry in path.iterdir() if (entry / SUMS_FILE).is_file())
    if not found and load_recipe(path / RECIPE_FILE).quantization.scheme == "sbm":
        raise TrainingOnlyError
    if not found and not (path / REPORT_FILE).is_file():
        raise BundleError(
            f"Expected a bundle in the run {readable.path(path)}, but it has not been trained to its end",
            hint=f"cpt train --resume {readable.argument(path)}, then cpt export {readable.argument(path)}",
        )
    if not found:
        raise BundleError(
            f"Expected a bundle in the run {readable.path(path)}, but it has none yet",
            hint=f"cpt export {readable.argument(path)}",
        )
    if len(found) > 1:
        names = " or ".join(readable.argument(entry) for entry in found)
        raise UsageError(f"Expected a run with one bundle, but {readable.path(path)} has {len(found)}", hint=names)
    return found[0]


def _existing(given: Path) -> Path:
    below = RUNS / given
    if given.exists():
        # A run is often named like the folder of images that it was trained on.
        return below if (below / RECIPE_FILE).is_file() and given.is_dir() and not _has_models(given) else given
    return below if below.is_dir() else given


def _has_models(folder: Path) -> bool:
    """Return whether a folder is a run or a bundle, or has models to serve."""
    patterns = (RECIPE_FILE, SUMS_FILE, "*.onnx", f"*/[0-9]*/{SUMS_FILE}")
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
