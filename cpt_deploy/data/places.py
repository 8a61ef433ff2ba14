"""Find data sets on disk: in the folder that the user names, in `$CPT_DATA_DIR`, then in the user's cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from cpt_deploy.errors import DataError, MissingDataError

DATA_DIR_VARIABLE = "CPT_DATA_DIR"


def cache_folder() -> Path:
    """Return the folder of downloaded data sets: `$XDG_CACHE_HOME/cpt-deploy`, normally `~/.cache/cpt-deploy`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cpt-deploy"


def candidate_folders(folder: str, root: Path | None) -> list[Path]:
    """Return the paths at which the data set folder `folder` may be, best first.

    Args:
        folder: The name of the data set's folder.
        root: The folder that the user named: the data set's folder or its parent. `None`: the usual places.
    """
    if root is not None:
        return [root, root / folder]
    data_dir = os.environ.get(DATA_DIR_VARIABLE)
    return [*([Path(data_dir) / folder] if data_dir else []), cache_folder() / folder]


def find_folder(name: str, folders: Sequence[Path], required: Sequence[str], *, hint: str) -> Path:
    """Return the first folder that has all of the required files; missing files are reported by name.

    Args:
        name: The data set's name, for the message.
        folders: Candidates, best first.
        required: Paths of the required files, relative to the folder. "a|b" means either.
        hint: How to get the data set.

    Raises:
        DataError: If no folder has all of them; the message lists the files and the folders.
    """
    missing = {folder: [entry for entry in required if not _exists(folder, entry)] for folder in folders}
    for folder, absent in missing.items():
        if not absent:
            return folder
    best = min(missing, key=lambda folder: len(missing[folder]))
    absent = missing[best]
    if len(absent) == len(required):
        places = _listed([str(folder) for folder in folders[:2]], "or")
        raise MissingDataError(
            f"Expected data set {name} ({_listed(required)}) in {places}, but it is not there",
            hint=hint,
        )
    raise DataError(
        f"Expected {len(required)} files of data set {name} in {best}, but {_listed(absent)} "
        f"{'is' if len(absent) == 1 else 'are'} missing",
        hint=hint,
    )


def _exists(folder: Path, entry: str) -> bool:
    return any((folder / name).is_file() for name in entry.split("|"))


def _listed(entries: Sequence[str], word: str = "and") -> str:
    names = [entry.split("|")[0] for entry in entries]
    shown = names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"
