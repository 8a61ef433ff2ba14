"""Which files of a folder are images; imports nothing but the standard library."""

from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".avif"}

#: Files that operating systems and programs leave in folders; names that begin with a dot are ignored too.
_LITTER = {"__macosx", "thumbs.db", "desktop.ini"}


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden, or one that an operating system left."""
    return path.name.startswith(".") or path.name.lower() in _LITTER


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it, except for hidden files and those in hidden folders."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if is_hidden(entry):
            continue
        if entry.is_dir():
            yield from visible_files(entry)
        else:
            yield entry


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, sorted."""
    return sorted(path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES)
