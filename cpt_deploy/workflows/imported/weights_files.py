"""Quantize a float model whose weights are in a file, and whose network is known by name, and write its bundle."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.tasks import ExportOptions, Reporter
from cpt_deploy.tasks.exporting import MAX_BITS, SOURCE_MODEL, dataset_name, folder_name, without_folder
from cpt_deploy.workflows.export import note_reduced
from cpt_deploy.workflows.imported.float_models import (
    FloatModel,
    calibration_batches,
    labels_of,
    note_accuracy,
    preprocessing_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from cpt_deploy.bundle import Bundle


def export_weights(
    source: FloatModel, options: ExportOptions, destination: Path | None, reporter: Reporter
) -> "Bundle":
    """Calibrate the model of weights on a data set, freeze it and write its bundle; see `export_float_model`."""
    import torch

    from cpt_deploy.bundle import ImageProcessor
    from cpt_deploy.data import load_images
    from cpt_deploy.export import ModelIdentity, export_bundle
    from cpt_deploy.models.weights_source import WeightsSource
    from cpt_deploy.quantization import QuantizationConfig, calibrate, make_native, make_symmetric, prepare
    from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
    from cpt_deploy.tasks.interface import GOLDEN_SAMPLES
    from cpt_deploy.validation import spread

    opened = WeightsSource.read(source.path, source.model)
    images = load_images(source.data, split="train", root=source.data_dir)
    labels = labels_of(source, images)
    preprocessing = preprocessing_of(source, images, (None, None, None), reporter)
    network = opened.build(preprocessing.input_shape, len(labels))
    if heads := opened.auxiliary_heads(network):
        reporter.note(f"{' and '.join(heads)} left out: auxiliary heads, which only help training")
    weights, activations = options.bits or MAX_BITS, options.activation_bits or MAX_BITS
    config = QuantizationConfig(min_bits=min(weights, activations), max_bits=MAX_BITS)
    model = prepare(network, torch.zeros(2, *preprocessing.input_shape), config).eval()
    if options.symmetric:
        make_symmetric(model, activations)
    if options.native:
        make_native(model)
    note_reduced(model, weights, reporter)
    seen = correct = 0

    def observed() -> "Iterator[Tensor]":
        nonlocal seen, correct
        for inputs, wanted in calibration_batches(images, preprocessing, source.batches):
            with torch.no_grad():
                correct += int((network(inputs).argmax(1) == wanted).sum())
            seen += len(wanted)
            yield inputs

    calibrate(model, observed(), weight_bits=options.bits, activation_bits=options.activation_bits, statistics=False)
    facts = note_accuracy(correct, seen, len(labels), reporter)
    folder = f"{source.path.stem}-{folder_name(f'{weights}bit', activations, MAX_BITS)}"
    processor = ImageProcessor(preprocessing, labels, options.pixels)
    identity = ModelIdentity(
        name=source.bundle_name,
        architecture=without_folder(opened.architecture),
        task=IMAGE_CLASSIFICATION,
        processor=processor,
        facts={
            "dataset": dataset_name(source.data), **source.facts(), SOURCE_MODEL: without_folder(opened.architecture),
            **facts,
        },
        calibrated=True,
    )  # fmt: skip
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
