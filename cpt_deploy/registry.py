"""One generic registry for models, data sets, schedules, tasks and whatever else is chosen by name."""

import difflib
import fnmatch
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from cpt_deploy.errors import UsageError

T = TypeVar("T")

_files: dict[str, Path] = {}
"""The files that import paths named, by the names of their modules."""

ONNX_FILE = "onnx:"
"""Before the path of an ONNX file that is named as a model."""


class Registry(Generic[T]):
    """Named objects of one kind, with errors that suggest the nearest names.

    Args:
        kind: Kind of the registered objects, in the singular, for error messages ("model", "data set").
        group: The group of entry points with which installed packages add objects of their own.
        modules: Objects that are imported when they are asked for, `module:attribute` by name.
    """

    def __init__(self, kind: str, *, group: str | None = None, modules: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}
        self._modules = dict(modules or {})

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
        if name not in self._entries:
            entry = self._not_imported().get(name)
            if entry is None:
                raise UsageError(
                    f"Expected a known {self.kind}, but got {name!r}", hint=nearest_names(name, self.names())
                )
            self._entries[name] = entry.load()
        return self._entries[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match a shell pattern, sorted."""
        return sorted(fnmatch.filter({*self._entries, *self._not_imported()}, pattern))

    def __contains__(self, name: str) -> bool:
        return name in self._entries or name in self._not_imported()

    def __iter__(self) -> Iterator[str]:
        return iter([*self._entries, *(name for name in self._not_imported() if name not in self._entries)])

    def _not_imported(self) -> dict[str, EntryPoint]:
        """Return what can be imported by its name; what installed packages add does not hide what is here."""
        own = {name: EntryPoint(name, path, self.group or "") for name, path in self._modules.items()}
        added = {} if self.group is None else {entry.name: entry for entry in entry_points(group=self.group)}
        return added | own


def nearest_names(name: str, known: list[str]) -> str:
    """Return a hint with the names most similar to `name`, or with up to 20 known names if none is similar."""
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = ", ".join(known[:20])
    return f"known: {shown}" + (f" and {len(known) - 20} more" if len(known) > 20 else "")


def import_object(path: str) -> object:
    """Import `module:attribute`, the form in which users name their own models, data sets and schedules.

    The working directory is searched too, as with `python -m`. The module may also be a file, `folder/net.py:build`,
    which finds the modules beside it as `python folder/net.py` does.

    Raises:
        UsageError: If the module or the attribute does not exist.
    """
    module_name, _, attribute = path.rpartition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UsageError(f"Expected an import path of the form 'module:attribute', but got {path!r}")
    file = source_file(path)
    if file is not None and not file.is_file():
        raise UsageError(f"Expected a Python file at {module_name}, but found none")
    folder = str(Path.cwd() if file is None else file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name) if file is None else _module_in(file)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Expected {path!r} to name an importable module, but {error.name!r} was not found",
            hint="the working directory and the installed packages are searched",
        ) from error
    try:
        found: object = getattr(module, attribute)
    except AttributeError as error:
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise UsageError(
            f"Expected module {module_name!r} to have {attribute!r}, but it has not",
            hint=nearest_names(attribute, own) if own else None,
        ) from error
    return found


def source_file(path: str) -> Path | None:
    """Return the file of an import path `file.py:attribute`, as an absolute path; None if it names a module."""
    module_name, _, _ = path.rpartition(":")
    return Path(module_name).expanduser().resolve() if module_name.endswith(".py") else None


def located(name: str) -> str:
    """Return a name as it is read from other working directories: an import path of a file with its absolute path."""
    file = source_file(name)
    return name if file is None else f"{file}:{name.rpartition(':')[2]}"


def imported_files() -> tuple[Path, ...]:
    """Return the files that `import_object` has imported."""
    return tuple(_files.values())


def import_files(files: Iterable[Path]) -> None:
    """Import files that another process imported, so that objects of their classes can be unpickled in this one."""
    for file in files:
        _module_in(file)


def _module_in(file: Path) -> ModuleType:
    """Import a file, under a name that hides no module of the same name."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise
    _files[name] = file
    return sys.modules[name]
