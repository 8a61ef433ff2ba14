"""A float model that was trained elsewhere: its file, its data, and what is known of its inputs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cpt_deploy import readable
from cpt_deploy.errors import UsageError
from cpt_deploy.tasks import Reporter
from cpt_deploy.tasks.exporting import SOURCE_DIGEST, SOURCE_FILE
from cpt_deploy.workflows.origins import file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from cpt_deploy.bundle import Preprocessing
    from cpt_deploy.data import ImageSet

ONNX_SUFFIX = ".onnx"
CALIBRATION_BATCHES = 16
CALIBRATION_BATCH_SIZE = 32
ACCURACY = "calibration_accuracy"
_GUESSING = 1.5
"""Accuracy, as a multiple of that of guessing, below which labels or preprocessing are probably wrong."""


@dataclass(frozen=True)
class FloatModel:
    """A float model, with its data, labels and preprocessing.

    Args:
        path: Its file: ONNX, or weights.
        data: Name, path or import path of the data set to calibrate on; for an ONNX file also values of its inputs, see
            `InputFiles.find`.
        data_dir: Folder of the data set.
        model: Name or import path of the model that the weights belong to.
        batches: Maximum number of calibration batches.
        labels: File of class names, one per line; None is the data set's.
        input: Settings of the input by the names of `data.input` of a recipe; the rest comes from file, model and data.
        name: Name of the model in the bundle; None is the file's.
    """

    path: Path
    data: str
    data_dir: Path | None = None
    model: str | None = None
    batches: int = CALIBRATION_BATCHES
    labels: Path | None = None
    input: dict[str, Any] = field(default_factory=dict)
    name: str | None = None

    @property
    def bundle_name(self) -> str:
        """Name of the model in the bundle."""
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.stem).strip("-._") or "model"

    def facts(self) -> dict[str, Any]:
        """Return the file's name and digest for the bundle."""
        return {SOURCE_FILE: self.path.name, SOURCE_DIGEST: file_digest(self.path)}


def labels_of(source: FloatModel, images: "ImageSet") -> tuple[str, ...]:
    """Return the names of the classes: those of the user's file, or of the data set.

    Raises:
        DataError: If the file cannot be read.
        UsageError: If it has another number of names than the data set has classes, or a name twice.
    """
    from cpt_deploy.data.sources.class_names import read_names

    path = source.labels
    if path is None:
        return images.classes
    labels = tuple(line.strip() for line in read_names(path) if line.strip())
    if len(labels) != len(images.classes):
        raise UsageError(
            f"Expected a name for each of the {len(images.classes)} classes of {images.name}, but "
            f"{readable.path(path)} has {len(labels)}"
        )
    if len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        raise UsageError(f"Expected different names in {readable.path(path)}, but got {twice!r} more than once")
    return labels


def preprocessing_of(
    source: FloatModel, images: "ImageSet", input_shape: tuple[int | None, int | None, int | None], reporter: Reporter
) -> "Preprocessing":
    """Return the preprocessing: settings of the user first, then of the file or model, then of the data set.

    Args:
        source: The model, with the settings of the user.
        images: The data set.
        input_shape: Channels, height and width that the file fixes; None where it does not.
        reporter: Receives a message with the result.

    Raises:
        UsageError: If the user's settings are not those of the file, or not one for each channel.
    """
    from cpt_deploy.data import default_preprocessing, resolve_preprocessing
    from cpt_deploy.models.published import published_input
    from cpt_deploy.recipe import InputSettings

    settings, default = dict(source.input), default_preprocessing(images)
    channels, height, width = input_shape
    for key, fixed in (("channels", channels), ("size", None if None in {height, width} else (height, width))):
        if fixed is None:
            continue
        if settings.get(key, fixed) != fixed:
            raise UsageError(
                f"Expected the {key} that {source.path.name} is made for, {fixed}, but got {settings[key]}"
            )
        settings[key] = fixed
    published = published_input(source.model or "")
    if published is not None and settings.get("channels", default.channels) == 3:
        photographs = default.resize is not None  # of small images each pixel is kept
        default = published if photographs else replace(default, channels=3, mean=published.mean, std=published.std)
    for key in ("mean", "std"):
        wanted = settings.get("channels", default.channels)
        if key in settings and len(settings[key]) != wanted:
            raise UsageError(f"Expected {wanted} numbers for --{key}, one per channel, but got {len(settings[key])}")
    try:
        preprocessing = resolve_preprocessing(InputSettings(**settings), default)
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    height, width = preprocessing.size
    resized = ""
    if preprocessing.resize is not None:
        resized = f" from the middle of {preprocessing.resize} ({preprocessing.interpolation})"
    reporter.note(
        f"images become {height} x {width} pixels{resized} in {preprocessing.channels} channels, normalised with mean "
        f"{_numbers(preprocessing.mean)} and standard deviation {_numbers(preprocessing.std)}"
    )
    return preprocessing


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def calibration_batches(
    images: "ImageSet", preprocessing: "Preprocessing", most: int
) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Yield calibration batches: training images in random order, without repetition or augmentation."""
    from itertools import islice

    from cpt_deploy.data import train_loader

    size = min(CALIBRATION_BATCH_SIZE, len(images))
    yield from islice(train_loader(images, preprocessing, (), batch_size=size, seed=0, epoch=0), most)


def note_accuracy(correct: int, seen: int, classes: int, reporter: Reporter) -> dict[str, Any]:
    """Report the accuracy of the float model on the calibration images, and return it with their number as facts."""
    accuracy = correct / seen
    reporter.note(
        f"calibrated on {seen:,} training images, of which the float model gets {readable.share(accuracy)} right"
    )
    if accuracy * classes <= _GUESSING:
        reporter.warning(
            "the float model is hardly better than guessing: are these its classes in its order, its --mean and --std?"
        )
    return {"calibration_images": seen, ACCURACY: round(accuracy, 6)}
