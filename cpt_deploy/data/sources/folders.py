"""Read image folders in the ImageNet layout: one folder per class, below `train` and `val` (or `test`)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpt_deploy.data.images import FileImages, Split
from cpt_deploy.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".avif"}
CLASS_NAMES = "class_names.tsv"

#: Files that operating systems and programs leave in folders; names that begin with a dot are ignored too.
_LITTER = {"__macosx", "thumbs.db", "desktop.ini"}

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test", "valid", "validation")}
_LAYOUT = "expected layout: ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg"


@dataclass(frozen=True)
class SplitFolder:
    """The contents of the folder of a split.

    Args:
        path: The folder.
        files: The images of each class, sorted; the classes are its sub-folders, sorted.
        left_out: Number of other files, by file type: ".heic", or "no extension".
    """

    path: Path
    files: Mapping[str, tuple[Path, ...]]
    left_out: Mapping[str, int]


def scan_folder(root: Path, split: Split) -> SplitFolder | None:
    """Return the contents of one split of an image folder, or None if it has no such split.

    Without any split, a folder of class folders is a test set by itself. Hidden files and system files (`__MACOSX`,
    `Thumbs.db`) are ignored and not counted.
    """
    folder = _existing(root, split)
    if folder is None and split == "test" and _existing(root, "train") is None and _class_folders(root):
        folder = root
    if folder is None:
        return None
    files: dict[str, tuple[Path, ...]] = {}
    left_out: Counter[str] = Counter()
    for name in _class_folders(folder):
        found = sorted(_visible_files(folder / name))
        files[name] = tuple(path for path in found if path.suffix.lower() in SUFFIXES)
        left_out.update(path.suffix.lower() or "no extension" for path in found if path.suffix.lower() not in SUFFIXES)
    return SplitFolder(folder, files, dict(left_out.most_common()))


def load_folder(root: Path, split: Split) -> FileImages:
    """Return one split of an image folder; nothing is decoded yet.

    The classes are the folders below `train`, sorted; without `train`, a folder of class folders is a test set by
    itself. A file `class_names.tsv` (folder, tab, name) gives the classes readable names.

    Raises:
        DataError: If the layout differs, a class has no images, or the classes of the splits differ.
    """
    found = scan_folder(root, split)
    if found is None:
        names = " or ".join(_SPLIT_FOLDERS[split])
        raise DataError(f"Expected {split} images in {root}/{names}, but there is no such folder", hint=_LAYOUT)
    trained = _existing(root, "train")
    classes = _class_folders(trained or found.path)
    if not found.files:
        raise DataError(f"Expected a folder per class in {found.path}, but found none", hint=_LAYOUT)
    if set(found.files) - set(classes):
        extra = ", ".join(sorted(set(found.files) - set(classes))[:5])
        raise DataError(
            f"Expected the classes of {trained} in {found.path}, but got others as well: {extra}", hint=_check(root)
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = found.files.get(name, ())
        if not files:
            raise DataError(
                f"Expected images of class {name!r} in {found.path / name}, but found none",
                hint=f"files that count as images: {', '.join(sorted(SUFFIXES))}; {_check(root)}",
            )
        paths += files
        labels += [label] * len(files)
    readable = _readable_names(root, classes)
    labelled = np.asarray(labels, dtype=np.int64)
    return FileImages(root.resolve().name, split, readable, labelled, tuple(paths), left_out=found.left_out)


def _check(root: Path) -> str:
    return f"cpt datasets check {root} lists all problems"


def _existing(root: Path, split: Split) -> Path | None:
    return next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry))


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it, except for hidden files and those in hidden folders."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if _is_hidden(entry):
            continue
        if entry.is_dir():
            yield from _visible_files(entry)
        else:
            yield entry


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _LITTER


def _readable_names(root: Path, classes: list[str]) -> tuple[str, ...]:
    path = root / CLASS_NAMES
    if not path.is_file():
        return tuple(classes)
    rows = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    names = {key: name.strip() for key, name in rows}
    return tuple(names.get(key, key) for key in classes)
