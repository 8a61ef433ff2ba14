"""Values of a model's inputs in NumPy's files, read a few rows at a time."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy import readable
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.signature import TensorSpec

Arrays = dict[str, NDArray[Any]]

BATCH_ROWS = 8
"""Rows of a calibration batch."""
_OF_DATA_SETS = ({"x_train", "y_train"}, {"jpeg", "offset"}, {"images", "labels"})
_BLOCK_BYTES = 2**20
_FORMS = (
    "a file .npz with an array (rows, ...) of each input; or a folder with NAME.npy of each input, with a folder NAME "
    "of such files, or with files .npz"
)


def has_input_files(path: Path) -> bool:
    """Return whether a path holds arrays of a model's inputs, and no data set of images."""
    if path.is_dir():
        if next(path.glob("train*.npz"), None) or next(path.glob("test*.npz"), None):
            return False
        return any(next(path.glob(pattern), None) for pattern in ("*.npy", "*.npz", "*/*.npy"))
    if path.suffix != ".npz":
        return False
    names: set[str] = set()
    if path.is_file():
        with _readable(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = {*archive.files}
    return not any(known <= names for known in _OF_DATA_SETS)


@dataclass(frozen=True, eq=False)
class InputFiles:
    """Values of the inputs of a model.

    Attributes:
        parts: Files that hold all inputs of some rows: by input, the path of its array, and its name in a file .npz.
        dtypes: Dtype of each input in a call, to which real and whole numbers of other sizes are converted.
    """

    parts: tuple[dict[str, Path], ...]
    dtypes: Mapping[str, np.dtype[Any]]

    @cached_property
    def arrays(self) -> Callable[[int], Arrays]:
        """Reads the arrays of a part by its number; the last one stays in memory, so that it is not read again.

        Raises:
            DataError: If a file is damaged.
            UsageError: If a file .npz has other arrays than the inputs.
        """
        return lru_cache(maxsize=1)(lambda number: _loaded(self.parts[number]))

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The number of rows of each part.

        Raises:
            UsageError: If inputs have not equally many.
        """
        return tuple(_rows(self.arrays(number), part) for number, part in enumerate(self.parts))

    @classmethod
    def find(cls, path: Path, tensors: Sequence[TensorSpec]) -> "InputFiles":
        """Find values of inputs.

        Args:
            path: A file .npz with an array (rows, ...) of each input, or a folder: with NAME.npy of each input; with a
                folder NAME of such files for each input, equally many in the order of their names; or with files .npz.
            tensors: The inputs.

        Raises:
            DataError: If they are missing or damaged.
            UsageError: If they are not those of the model, or have other sizes or another kind of numbers.
        """
        names = [tensor.name for tensor in tensors]
        if not path.is_dir():
            parts = [dict.fromkeys(names, path)]
        elif all((path / f"{name}.npy").is_file() for name in names):
            parts = [{name: path / f"{name}.npy" for name in names}]
        elif all((path / name).is_dir() for name in names):
            files = {name: sorted((path / name).glob("*.npy")) for name in names}
            if len({len(found) for found in files.values()}) != 1:
                raise UsageError(
                    f"Expected equally many files of each input in {readable.path(path)}, but got " + _counts(files)
                )
            parts = [dict(zip(names, row, strict=True)) for row in zip(*files.values(), strict=True)]
        else:
            parts = [dict.fromkeys(names, file) for file in sorted(path.glob("*.npz"))]
        if not parts:
            raise DataError(
                f"Expected values of {', '.join(names)} in {readable.path(path)}, but found none", hint=_FORMS
            )
        found_files = cls(tuple(parts), {tensor.name: np.dtype(tensor.dtype) for tensor in tensors})
        for number in range(len(parts)):
            arrays = found_files.arrays(number)
            for tensor in tensors:
                _check_fits(arrays[tensor.name], tensor)
        return found_files

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(self.rows)

    @property
    def number_of_batches(self) -> int:
        """The number of batches of `BATCH_ROWS`."""
        return sum(-(-rows // BATCH_ROWS) for rows in self.rows)

    def batches(self, size: int = BATCH_ROWS) -> Iterator[Arrays]:
        """Yield up to `size` rows of one part at a time; of files .npy no more than these is in memory."""
        for number, rows in enumerate(self.rows):
            arrays = self.arrays(number)
            for start in range(0, rows, size):
                yield {name: self._values(name, array[start : start + size]) for name, array in arrays.items()}

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return sorted({path for part in self.parts for path in part.values()})

    def calls(self, shapes: Mapping[str, Sequence[int | str]]) -> Iterator[Arrays]:
        """Yield the inputs of one call at a time, for models whose rows cannot be joined.

        Args:
            shapes: The shape of each input in a call. Arrays with one more dimension hold a call in each row; otherwise
                a call has as many rows as the first size states, or one if that is free.
        """
        for number, part in enumerate(self.parts):
            arrays = self.arrays(number)
            steps, count = _steps(arrays, shapes, next(iter(part.values())).name)
            for call in range(count):
                yield {
                    name: self._values(
                        name, array[call] if (step := steps[name]) is None else array[call * step : (call + 1) * step]
                    )
                    for name, array in arrays.items()
                }

    def number_of_calls(self, shapes: Mapping[str, Sequence[int | str]]) -> int:
        """Return the number of calls; see `calls`."""
        return sum(
            _steps(self.arrays(number), shapes, next(iter(part.values())).name)[1]
            for number, part in enumerate(self.parts)
        )

    def sha256(self) -> str:
        """Return the checksum of the contents of all files; no file is in memory as a whole."""
        total = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    total.update(block)
        return total.hexdigest()

    def ends(self) -> Arrays:
        """Return the first and the last row.

        Raises:
            UsageError: If a part has no rows, or inputs have not equally many.
        """
        first, last = self.arrays(0), self.arrays(len(self.rows) - 1)
        return {name: self._values(name, np.stack([first[name][0], last[name][-1]])) for name in first}

    def _values(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return np.array(array, self.dtypes[name])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of zipfile, of zlib, of NumPy, of the file system
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise DataError(f"Expected arrays in {readable.path(path)}, but got: {reason}", hint=_FORMS) from error


def _loaded(part: dict[str, Path]) -> Arrays:
    """Return the arrays of a part by input: of a file .npz in memory, of files .npy mapped to memory.

    Raises:
        DataError: If a file is damaged.
        UsageError: If a file .npz has other arrays than the inputs.
    """
    arrays: Arrays = {}
    for name, path in part.items():
        with _readable(path):
            if path.suffix == ".npy":
                arrays[name] = np.load(path, allow_pickle=False, mmap_mode="r")
                continue
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if {*archive.files} != {*part}:
                    found = ", ".join(archive.files) or "none"
                    raise UsageError(f"Expected arrays {', '.join(part)} in {path.name}, but got {found}")
                arrays[name] = archive[name]
    return arrays


def _check_fits(array: NDArray[Any], tensor: TensorSpec) -> None:
    """Raise a `UsageError` if an array has no rows or calls of an input."""
    wanted, got = np.dtype(tensor.dtype), f"{array.dtype} {array.shape}"
    shape = tensor.whole_shape
    # Each row is one of a call, or a call.
    fits = not shape or any(
        array.ndim == len(sizes) + 1
        and all(size == known for size, known in zip(array.shape[1:], sizes, strict=True) if isinstance(known, int))
        for sizes in (shape[1:], shape)
    )
    if not fits or not np.can_cast(array.dtype, wanted, "same_kind"):
        sizes = ", ".join(map(str, shape))
        raise UsageError(f"Expected rows of {tensor.name}, {tensor.dtype} ({sizes}) in a call, but got {got}")


def _steps(arrays: Arrays, shapes: Mapping[str, Sequence[int | str]], where: str) -> tuple[dict[str, int | None], int]:
    """Return the rows of a call by input, None where each row is a call, and the number of calls."""
    steps: dict[str, int | None] = {}
    for name, array in arrays.items():
        first = shapes[name][0] if shapes[name] else 1
        steps[name] = None if array.ndim == len(shapes[name]) + 1 else first if isinstance(first, int) else 1
    counts = {name: len(array) // (steps[name] or 1) for name, array in arrays.items()}
    if len({*counts.values()}) != 1:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UsageError(f"Expected inputs of equally many calls in {where}, but got {found}")
    return steps, next(iter(counts.values()))


def _rows(arrays: Arrays, part: dict[str, Path]) -> int:
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len({*lengths.values()}) != 1 or 0 in lengths.values():
        where = next(iter(part.values())).name
        found = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise UsageError(f"Expected rows, equally many of each input, in {where}, but got {found}")
    return next(iter(lengths.values()))


def _counts(files: dict[str, list[Path]]) -> str:
    return ", ".join(f"{len(found)} of {name}" for name, found in files.items())
