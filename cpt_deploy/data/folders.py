"""Image folders in the ImageNet layout: one folder a class, below `train` and `val` (or `test`)."""

from pathlib import Path

import numpy as np

from cpt_deploy.data.images import FileImages, Split
from cpt_deploy.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".avif"}
CLASS_NAMES = "class_names.tsv"

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test", "valid", "validation")}
_LAYOUT = "expected layout: ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg"


def load_folder(root: Path, split: Split) -> FileImages:
    """Return one split of an image folder; nothing is decoded yet.

    The classes are the folders below `train`, sorted; where there is no `train`, a folder of class folders is a test
    set by itself. A file `class_names.tsv` (folder, tab, name) gives the classes readable names.

    Raises:
        DataError: If the layout is another one, a class has no images, or the splits disagree on the classes.
    """
    trained, tested = _existing(root, "train"), _existing(root, "test")
    if trained is None and tested is None and split == "test" and _class_folders(root):
        trained = tested = root
    folder = trained if split == "train" else tested
    if folder is None:
        names = " or ".join(_SPLIT_FOLDERS[split])
        raise DataError(f"Expected {split} images in {root}/{names}, but there is no such folder", hint=_LAYOUT)
    classes = _class_folders(trained or folder)
    found = _class_folders(folder)
    if not found:
        raise DataError(f"Expected a folder a class in {folder}, but found none", hint=_LAYOUT)
    if set(found) - set(classes):
        extra = ", ".join(sorted(set(found) - set(classes))[:5])
        raise DataError(f"Expected the classes of {trained} in {folder}, but got others as well: {extra}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(
                f"Expected images of class {name!r} in {folder / name}, but found none",
                hint=f"files that count as images: {', '.join(sorted(SUFFIXES))}",
            )
        paths += files
        labels += [label] * len(files)
    readable = _readable_names(root, classes)
    return FileImages(root.resolve().name, split, readable, np.asarray(labels, dtype=np.int64), tuple(paths))


def _existing(root: Path, split: Split) -> Path | None:
    return next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _readable_names(root: Path, classes: list[str]) -> tuple[str, ...]:
    path = root / CLASS_NAMES
    if not path.is_file():
        return tuple(classes)
    rows = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    names = {key: name.strip() for key, name in rows}
    return tuple(names.get(key, key) for key in classes)
