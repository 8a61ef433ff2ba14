"""Find the origin of a bundle: its run, or the float model that it was calibrated from."""

import hashlib
from pathlib import Path

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe import load_recipe
from cpt_deploy.tasks.evidence import Origin
from cpt_deploy.tasks.exporting import SOURCE_DIGEST, SOURCE_FILE, SOURCE_MODEL, TRAINED_DIGEST

REPORT_FILE = "report.json"
"""The file that a finished run has."""


def find_origin(bundle: Bundle, run: Path | None = None, source: Path | None = None) -> Origin:
    """Find the run or float model that a bundle was made from, if available.

    Args:
        bundle: The bundle.
        run: Its run, if known; None is the run whose directory contains the bundle.
        source: Its float model, if known; None is one in a folder around the bundle.

    Raises:
        UsageError: If the bundle was not made from the given run or file.
    """
    if run is not None and not is_run_of(run, bundle):
        raise UsageError(
            f"Expected the run that {readable.path(bundle.path)} was exported from, but {readable.path(run)} has other "
            "trained weights",
            hint="export the bundle again, or leave --run out",
        )
    found = run or find_run(bundle)
    if found is not None and source is None:
        return Origin(run=found)
    return Origin(source=find_source(bundle, source))


def find_run(bundle: Bundle) -> Path | None:
    """Return the run that a bundle was exported from, if the bundle is inside of it and the weights are the same."""
    for folder in bundle.path.resolve().parents:
        if (folder / REPORT_FILE).is_file() and is_run_of(folder, bundle):
            return folder
    return None


def is_run_of(run_dir: Path, bundle: Bundle) -> bool:
    """Return whether the trained weights of a run are those that a bundle was exported from."""
    weights = run_dir / "model.safetensors"
    return weights.is_file() and bundle.facts.get(TRAINED_DIGEST) == file_digest(weights)


def own_data(bundle: Bundle, run: Path | None = None) -> tuple[str, Path | None] | None:
    """Return name and folder of the data of a bundle's run, or the name in the bundle itself; None if it has none.

    Args:
        bundle: The bundle.
        run: Its run, if known; None is the run whose directory contains the bundle.
    """
    found = run or find_run(bundle)
    if found is not None and (found / "recipe.yaml").is_file():
        data = load_recipe(found / "recipe.yaml").data
        return data.name, None if data.root is None else Path(data.root)
    name = bundle.facts.get("dataset")
    return (name, None) if isinstance(name, str) and ":" not in name else None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_source(bundle: Bundle, given: Path | None = None) -> Path | None:
    """Return the file that a calibrated bundle was made from: the given one, or one in a folder around the bundle.

    A bundle whose model is named by an import path needs the file to be given.

    Raises:
        UsageError: If the bundle was not made from the given file.
    """
    digest, name = bundle.facts.get(SOURCE_DIGEST), bundle.facts.get(SOURCE_FILE)
    if given is not None:
        if not given.is_file() or file_digest(given) != digest:
            raise UsageError(
                f"Expected the float model that {readable.path(bundle.path)} was made from, but {readable.path(given)} "
                f"{'is another file' if given.is_file() else 'does not exist'}",
                hint=f"its name was {name}" if name else "the bundle was exported from a run: see --run",
            )
        return given
    if digest is None or not isinstance(name, str) or Path(name).name != name:
        return None
    if ":" in str(bundle.facts.get(SOURCE_MODEL, "")):
        return None  # an import path runs code: only if the user names the file, never from a bundle's content
    candidates = [folder / name for folder in bundle.path.resolve().parents]
    return next((path for path in candidates if path.is_file() and file_digest(path) == digest), None)
