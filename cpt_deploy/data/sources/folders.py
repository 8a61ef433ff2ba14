"""Read image folders: one folder per class, below `train` and `val` (or `test`), or without these, to be split here."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpt_deploy import readable
from cpt_deploy.data.images import FileImages, Split
from cpt_deploy.data.sources.class_names import read_names
from cpt_deploy.errors import DataError
from cpt_deploy.image_files import SUFFIXES, is_hidden, visible_files

CLASS_NAMES = "class_names.tsv"

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test", "valid", "validation")}
_LAYOUT = "expected layout: ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg, or ROOT/<class>/*.jpg"
HELD_OUT = 0.2
"""Share of each class that is held out for testing in a folder without splits."""


@dataclass(frozen=True)
class SplitFolder:
    """The contents of the folder of a split.

    Args:
        path: The folder.
        files: The images of each class, sorted; the classes are its sub-folders, sorted.
        left_out: Number of other files, by file type: ".heic", or "no extension".
        divided: Whether it is a part of a folder without splits, see `held_out`.
    """

    path: Path
    files: Mapping[str, tuple[Path, ...]]
    left_out: Mapping[str, int]
    divided: bool = False


def held_out(folder: Path, images: Sequence[Path]) -> frozenset[Path]:
    """Return the images of a class that are held out for testing: a fifth of them, and of two or more at least one.

    They are chosen by the hash of their names, so that the same files give the same split on every machine, and files
    that are added later leave most of it as it is.

    Args:
        folder: The folder of the class.
        images: Its images.
    """

    def draw(image: Path) -> bytes:
        return hashlib.sha256(image.relative_to(folder).as_posix().encode()).digest()

    count = max(round(HELD_OUT * len(images)), 1) if len(images) > 1 else 0
    return frozenset(sorted(images, key=draw)[:count])


def scan_folder(root: Path, split: Split) -> SplitFolder | None:
    """Return the contents of one split of an image folder, or None if it has no such split.

    A folder of class folders without any split is divided by `held_out`; one with the name of a test split is a test
    set by itself. Hidden files and system files (`__MACOSX`, `Thumbs.db`) are ignored and not counted.
    """
    folder, divided = _existing(root, split), False
    if folder is None and not any(_existing(root, name) for name in _SPLIT_FOLDERS) and _class_folders(root):
        divided = root.resolve().name not in _SPLIT_FOLDERS["test"]
        folder = root if divided or split == "test" else None
    if folder is None:
        return None
    files: dict[str, tuple[Path, ...]] = {}
    left_out: Counter[str] = Counter()
    for name in _class_folders(folder):
        found = sorted(visible_files(folder / name))
        images = [path for path in found if path.suffix.lower() in SUFFIXES]
        if divided:
            kept = held_out(folder / name, images)
            images = [path for path in images if (path in kept) == (split == "test")]
        files[name] = tuple(images)
        left_out.update(path.suffix.lower() or "no extension" for path in found if path.suffix.lower() not in SUFFIXES)
    return SplitFolder(folder, files, dict(left_out.most_common()) if split == "train" or not divided else {}, divided)


def load_folder(root: Path, split: Split) -> FileImages:
    """Return one split of an image folder; nothing is decoded yet.

    The classes are the folders below `train`, sorted; a folder without splits is divided as in `scan_folder`. A file
    `class_names.tsv` (folder, tab, name) gives the classes readable names.

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
            few = found.divided and split == "test"
            wanted = "two images or more, one of them to test with," if few else "images"
            raise DataError(
                f"Expected {wanted} of class {name!r} in {found.path / name}, but found {'fewer' if few else 'none'}",
                hint=f"files that count as images: {', '.join(sorted(SUFFIXES))}; {_check(root)}",
            )
        paths += files
        labels += [label] * len(files)
    names_shown = _readable_names(root, classes)
    labelled = np.asarray(labels, dtype=np.int64)
    return FileImages(
        root.resolve().name, split, names_shown, labelled, tuple(paths), found.left_out, divided=found.divided
    )


def _check(root: Path) -> str:
    return f"cpt datasets check {readable.argument(root)} lists all problems"


def _existing(root: Path, split: Split) -> Path | None:
    return next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry))


def _readable_names(root: Path, classes: list[str]) -> tuple[str, ...]:
    path = root / CLASS_NAMES
    if not path.is_file():
        return tuple(classes)
    rows = (line.split("\t", 1) for line in read_names(path) if "\t" in line)
    names = {key: name.strip() for key, name in rows}
    readable_names = [names.get(key) or key for key in classes]
    counts = Counter(readable_names)
    # ImageNet has two classes "crane", a bird and a machine.
    return tuple(
        f"{name} ({key})" if counts[name] > 1 else name for key, name in zip(classes, readable_names, strict=True)
    )
