"""Export a float model that was trained elsewhere to a bundle: calibrate, freeze and write it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy import readable
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.tasks import SILENT, ExportOptions, Reporter
from cpt_deploy.tasks.exporting import MAX_BITS, SOURCE_DIGEST, SOURCE_FILE, SOURCE_MODEL, dataset_name, without_folder
from cpt_deploy.workflows.experiments.bit_allocation import folder_name
from cpt_deploy.workflows.export import note_reduced
from cpt_deploy.workflows.origins import file_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cpt_deploy.bundle import Bundle, Preprocessing
    from cpt_deploy.data import ImageSet
    from cpt_deploy.models.imported import SourceModel
    from cpt_deploy.quantization import QuantizedModel

CALIBRATION_BATCHES = 16
CALIBRATION_BATCH_SIZE = 32
ACCURACY = "calibration_accuracy"
GUESSING = 1.5
"""Accuracy, as a multiple of that of guessing, below which labels or preprocessing are probably wrong."""


@dataclass(frozen=True)
class FloatModel:
    """A float model, with its data, labels and preprocessing.

    Args:
        path: Its file: ONNX, or weights.
        data: Name, path or import path of the data set to calibrate on.
        data_dir: Folder of the data set.
        model: Name or import path of the model that the weights belong to.
        batches: Maximum number of calibration batches.
        labels: File of class names, one per line; None is the data set's.
        input: Settings of the input: size, channels, mean, std; the rest comes from file, model and data.
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


def export_float_model(
    source: FloatModel,
    options: ExportOptions = ExportOptions(),  # noqa: B008  it is frozen
    *,
    destination: Path | None = None,
    reporter: Reporter = SILENT,
) -> "Bundle":
    """Calibrate a float model on data, freeze it and write its bundle.

    Args:
        source: The model and the data.
        options: Bits and formats of the bundle.
        destination: Directory of the bundle; None is `<file>-bundle-<bits>bit` beside the file.
        reporter: Receives messages and progress.

    Raises:
        UsageError: If file, model, data and options do not fit each other.
        ConversionError: If the model has an operation without an integer form.
        DataError: If the file or the data is missing or damaged.
        BundleError: If the bundle cannot be written.
    """
    import torch

    from cpt_deploy.bundle import ImageProcessor
    from cpt_deploy.data import load_images
    from cpt_deploy.export import ModelIdentity, export_bundle
    from cpt_deploy.models.imported import WeightsSource, open_source
    from cpt_deploy.quantization import QuantizationConfig, make_native, make_symmetric, prepare
    from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
    from cpt_deploy.tasks.interface import GOLDEN_SAMPLES
    from cpt_deploy.validation import spread

    opened = open_source(source.path, source.model)
    images = load_images(source.data, split="train", root=source.data_dir)
    labels = _labels(source.labels, images)
    preprocessing = _preprocessing(opened, images, source, reporter)
    network = opened.build(preprocessing.input_shape, len(labels))
    heads = opened.auxiliary_heads(network) if isinstance(opened, WeightsSource) else ()
    if heads:
        reporter.note(f"{' and '.join(heads)} left out: auxiliary heads, which only help training")
    weights, activations = options.bits or MAX_BITS, options.activation_bits or MAX_BITS
    config = QuantizationConfig(min_bits=min(weights, activations), max_bits=MAX_BITS)
    model = prepare(network, torch.zeros(2, *preprocessing.input_shape), config).eval()
    if options.symmetric:
        make_symmetric(model, activations)
    if options.native:
        make_native(model)
    note_reduced(model, weights, reporter)
    facts = _calibrate(model, network, _batches(images, preprocessing, source.batches), options, reporter)
    if facts[ACCURACY] * len(labels) <= GUESSING:
        reporter.warning(
            "the float model is hardly better than guessing: are these its classes in its order, its --mean and --std?"
        )
    folder = f"{source.path.stem}-{folder_name(f'{weights}bit', activations, MAX_BITS)}"
    processor = ImageProcessor(preprocessing, labels)
    identity = ModelIdentity(
        name=source.name or re.sub(r"[^A-Za-z0-9._-]+", "-", source.path.stem).strip("-._") or "model",
        architecture=without_folder(source.model) or opened.architecture,
        task=IMAGE_CLASSIFICATION,
        processor=processor,
        facts={
            "dataset": dataset_name(source.data),
            SOURCE_FILE: source.path.name,
            SOURCE_DIGEST: file_digest(source.path),
            **({} if source.model is None else {SOURCE_MODEL: without_folder(source.model)}),
            **facts,
        },
        calibrated=True,
    )
    golden = processor.inputs([images.image(int(place)) for place in spread(len(images), GOLDEN_SAMPLES)])
    return export_bundle(
        model,
        destination or source.path.with_name(folder + options.suffix),
        identity,
        {name: torch.from_numpy(values) for name, values in golden.items()},
        weight_bits=weights,
        activation_bits=activations,
        opset=options.opset,
        formats=options.formats,
    )


def _labels(path: Path | None, images: "ImageSet") -> tuple[str, ...]:
    if path is None:
        return images.classes
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected class names, one per line, in {readable.path(path)}, but got: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != len(images.classes):
        raise UsageError(
            f"Expected a name for each of the {len(images.classes)} classes of {images.name}, but "
            f"{readable.path(path)} has {len(labels)}"
        )
    return labels


def _preprocessing(
    opened: "SourceModel", images: "ImageSet", source: FloatModel, reporter: Reporter
) -> "Preprocessing":
    """Return the preprocessing: settings of the user first, then of the file or model, then of the data set."""
    from cpt_deploy.data import default_preprocessing, resolve_preprocessing
    from cpt_deploy.models.torchvision_models import PREFIX, published_normalization
    from cpt_deploy.recipe import InputSettings

    settings, default = dict(source.input), default_preprocessing(images)
    channels, height, width = opened.input_shape
    for key, fixed in (("channels", channels), ("size", None if None in {height, width} else (height, width))):
        if fixed is None:
            continue
        if settings.get(key, fixed) != fixed:
            raise UsageError(
                f"Expected the {key} that {source.path.name} is made for, {fixed}, but got {settings[key]}"
            )
        settings[key] = fixed
    name = source.model or ""
    if name.startswith(PREFIX) and settings.get("channels", default.channels) == 3:
        published = published_normalization(name.removeprefix(PREFIX), {})
        settings = dict(zip(("mean", "std"), published, strict=True)) | settings
    for key in ("mean", "std"):
        wanted = settings.get("channels", default.channels)
        if key in settings and len(settings[key]) != wanted:
            raise UsageError(f"Expected {wanted} numbers for --{key}, one per channel, but got {len(settings[key])}")
    preprocessing = resolve_preprocessing(InputSettings(**settings), default)
    height, width = preprocessing.size
    reporter.note(
        f"images become {height} x {width} pixels in {preprocessing.channels} channels, normalised with mean "
        f"{_numbers(preprocessing.mean)} and standard deviation {_numbers(preprocessing.std)}"
    )
    return preprocessing


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _batches(images: "ImageSet", preprocessing: "Preprocessing", most: int) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Yield calibration batches: training images in random order, without repetition or augmentation."""
    from itertools import islice

    from cpt_deploy.data import train_loader

    size = min(CALIBRATION_BATCH_SIZE, len(images))
    yield from islice(train_loader(images, preprocessing, (), batch_size=size, seed=0, epoch=0), most)


def _calibrate(
    model: "QuantizedModel",
    network: "nn.Module",
    batches: Iterator[tuple["Tensor", "Tensor"]],
    options: ExportOptions,
    reporter: Reporter,
) -> dict[str, Any]:
    """Calibrate the model; return the number of images, and the float model's accuracy on them."""
    import torch

    from cpt_deploy.quantization import calibrate

    seen = correct = 0

    def observed() -> Iterator["Tensor"]:
        nonlocal seen, correct
        for inputs, labels in batches:
            with torch.no_grad():
                correct += int((network(inputs).argmax(1) == labels).sum())
            seen += len(labels)
            yield inputs

    used = calibrate(
        model, observed(), weight_bits=options.bits, activation_bits=options.activation_bits, statistics=False
    )
    accuracy = correct / seen
    reporter.note(
        f"calibrated on {used} training batches, {seen:,} images, of which the float model gets "
        f"{readable.share(accuracy)} right"
    )
    return {"calibration_images": seen, ACCURACY: round(accuracy, 6)}
