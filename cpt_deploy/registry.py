"""A generic registry for models, data sets, schedules and other objects that are chosen by name."""

import difflib
import fnmatch
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from cpt_deploy.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind, with errors that suggest the nearest names.

    Args:
        kind: Kind of the registered objects, in the singular, for error messages ("model", "data set").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object as `name`; each name can be used once."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"Expected a new {self.kind} name, but got {name!r}, which is registered already")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the object registered as `name`.

        Raises:
            UsageError: If there is none; the hint has the nearest names.
        """
        if name in self._entries:
            return self._entries[name]
        raise UsageError(f"Expected a known {self.kind}, but got {name!r}", hint=nearest_names(name, self.names()))

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a shell pattern, sorted."""
        return sorted(fnmatch.filter(self._entries, pattern))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def nearest_names(name: str, known: list[str]) -> str:
    """Return a hint with the names most similar to `name`, or with up to 20 known names if none is similar."""
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = ", ".join(known[:20])
    return f"known: {shown}" + (f" and {len(known) - 20} more" if len(known) > 20 else "")


def import_object(path: str) -> object:
    """Import `module:attribute`, the form in which users name their own models, data sets and schedules.

    The working directory is searched too, as with `python -m`.

    Raises:
        UsageError: If the module or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"Expected an import path of the form 'module:attribute', but got {path!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Expected {path!r} to name an importable module, but {error.name!r} was not found",
            hint="the working directory and the installed packages are searched",
        ) from error
    try:
        found: object = getattr(module, attribute)
    except AttributeError as error:
        raise UsageError(f"Expected module {module_name!r} to have {attribute!r}, but it has not") from error
    return found
