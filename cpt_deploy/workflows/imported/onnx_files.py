"""Quantize an ONNX file on images or on values of its inputs, and write its bundle."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.errors import BundleError, ConversionError, UsageError
from cpt_deploy.signature import BATCH, INPUT_NAME, OUTPUT_NAME, TensorSpec
from cpt_deploy.tasks import SILENT, ExportOptions, Reporter
from cpt_deploy.tasks.exporting import MAX_BITS, dataset_name, folder_name
from cpt_deploy.workflows.imported.float_models import (
    ONNX_SUFFIX,
    FloatModel,
    calibration_batches,
    labels_of,
    note_accuracy,
    preprocessing_of,
)
from cpt_deploy.workflows.imported.input_files import InputFiles, has_input_files

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle, Processor
    from cpt_deploy.onnx_graph.quantizing import QuantizedOnnx
    from cpt_deploy.onnx_graph.reading import OnnxNetwork

Arrays = Mapping[str, NDArray[Any]]

TASK = "tensors"
"""Task of models that are known by their inputs and outputs alone."""
_GOLDEN_ROWS = 2
_INDEPENDENT = 1e-3
"""Allowed difference of a row's outputs if it is in a batch with others, as a share of the greatest output."""


def export_float_model(
    source: FloatModel,
    options: ExportOptions = ExportOptions(),  # noqa: B008  it is frozen
    *,
    destination: Path | None = None,
    reporter: Reporter = SILENT,
) -> "Bundle":
    """Calibrate a float model that was trained elsewhere, freeze it and write its bundle.

    The graph of an ONNX file stays: what has an integer form in it becomes integers. With a data set of images, the
    file is an image classifier, and so is the bundle; with values of its inputs it may be any model, and the bundle
    takes and returns tensors.

    Args:
        source: The model and the data.
        options: Bits and formats of the bundle.
        destination: Directory of the bundle; None is `<file>-bundle-<bits>bit` beside the file.
        reporter: Receives messages and progress.

    Raises:
        UsageError: If file, model, data and options do not fit each other.
        ConversionError: If the model has no layer with an integer form.
        DataError: If the file or the data is missing or damaged.
        BundleError: If the bundle cannot be written.
    """
    if source.path.suffix != ONNX_SUFFIX:
        from cpt_deploy.workflows.imported.weights_files import export_weights

        return export_weights(source, options, destination, reporter)
    from cpt_deploy.export.bundle_export import ModelIdentity, export_graph
    from cpt_deploy.integer.float_costs import FloatCosts
    from cpt_deploy.onnx_graph.onnx_parts import read_parts
    from cpt_deploy.onnx_graph.packing import smallest_opset
    from cpt_deploy.onnx_graph.quantizing import quantize_onnx
    from cpt_deploy.onnx_graph.quantizing.precision import Precision

    _check_options(source, options)
    weights, activations = options.bits or MAX_BITS, options.activation_bits or MAX_BITS
    precision = Precision(weights, activations, options.symmetric, portable=not options.native)
    given = _tensors(source, reporter) if has_input_files(Path(source.data)) else _images(source, options, reporter)
    with reporter.bar("calibrating", given.batches) as bar:
        quantized = quantize_onnx(given.network, _advancing(given.samples, bar.advance), precision)
    graph, placement = quantized.graph, quantized.placement
    if not given.joined:
        graph = replace(graph, signature=graph.signature.by_call())
    if not graph.weighted():
        raise ConversionError(
            f"Expected a layer with an integer form in {source.path.name}, but found none: {_in_words(quantized)}",
            hint=_hint_of_bodies(given.network),
        )
    note_placement(quantized, reporter)
    kinds = Counter(layer.operator for layer in placement.float_layers) + Counter(placement.float_operators)
    float_macs = sum(layer.macs for layer in placement.float_layers)
    floats = FloatCosts(dict(kinds.most_common()), placement.integer_macs, float_macs)
    identity = ModelIdentity(
        name=source.bundle_name,
        architecture=source.path.stem,
        task=given.task,
        processor=given.processor,
        facts=source.facts() | given.facts(),
        calibrated=True,
    )
    import torch

    folder = folder_name(f"{weights}bit", activations, MAX_BITS)
    return export_graph(
        graph,
        destination or source.path.with_name(f"{source.path.stem}-{folder}{options.suffix}"),
        identity,
        {key: torch.from_numpy(array) for key, array in given.golden.items()},
        facts={
            "weight_bits": weights,
            "activation_bits": activations,
            "opset": read_parts(graph).opset or options.opset or smallest_opset(graph),
            "reduced_layers": [],
        },
        floats=(floats, "they have no integer form") if graph.has_float_operations else None,
        formats=options.formats,
    )


def _hint_of_bodies(network: "OnnxNetwork") -> str | None:
    """Return what to do if the layers of a network are in subgraphs, which are not quantized; None if they are not."""
    from cpt_deploy.onnx_graph.finding.placement import LAYERS
    from cpt_deploy.onnx_graph.onnx_parts import inner_nodes

    for node in network.nodes:
        if any(inner.op_type in LAYERS for inner in inner_nodes(node)):
            known = " and make its condition a constant, so that one branch remains" if node.op_type == "If" else ""
            return f"its layers are inside of {node.op_type}, which stays as it is: export the model without it{known}"
    return None


@dataclass(frozen=True)
class _Given:
    """A network, and what it is calibrated on.

    Attributes:
        network: The network.
        samples: Values of its inputs, some rows at a time.
        batches: Number of these.
        golden: Inputs of the bundle for its golden sample.
        task: Task of the bundle.
        processor: Processor of the bundle.
        facts: Returns further facts for the bundle, after calibration.
        joined: Whether rows of several requests may be computed together.
    """

    network: "OnnxNetwork"
    samples: Iterator[Arrays]
    batches: int
    golden: Arrays
    task: str
    processor: "Processor"
    facts: Callable[[], dict[str, Any]]
    joined: bool = True


def _advancing(samples: Iterator[Arrays], advance: Callable[[int], None]) -> Iterator[Arrays]:
    for done, sample in enumerate(samples, 1):
        yield sample
        advance(done)


def _tensors(source: FloatModel, reporter: Reporter) -> _Given:
    """Return a network of any inputs and outputs, with values of its inputs: rows of them, or whole calls."""
    from cpt_deploy.bundle import TensorProcessor
    from cpt_deploy.onnx_graph.reading import read_onnx
    from cpt_deploy.onnx_graph.reading.batches import with_free_batch
    from cpt_deploy.onnx_graph.reading.signatures import declared_inputs

    read = read_onnx(source.path)
    if not read.inputs:
        raise ConversionError(f"Expected a model with inputs in {source.path.name}, but it has none")
    tensors = declared_inputs(read)
    files = InputFiles.find(Path(source.data), tensors)
    shapes = {tensor.name: tensor.whole_shape for tensor in tensors}
    network, apart = with_free_batch(read), _no_rows(files, shapes)
    apart = apart or _why_apart(network, read, _rows_to_try(files.ends()))
    if apart is None:
        first = next(files.batches(_GOLDEN_ROWS))
        facts: dict[str, Any] = {"calibration_rows": files.count}
        return _Given(network, files.batches(), files.number_of_batches, first, TASK, TensorProcessor(), lambda: facts)
    reporter.note(f"each request will be computed by itself: {apart}")
    count = files.number_of_calls(shapes)
    if not count:
        rows = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
        raise UsageError(
            f"Expected the rows of a whole call in {source.data}, but got fewer", hint=f"a call has {rows}"
        )
    facts = {"calibration_calls": count, "by_call": apart}
    first = next(files.calls(shapes))
    return _Given(read, files.calls(shapes), count, first, TASK, TensorProcessor(), lambda: facts, joined=False)


def _no_rows(files: InputFiles, shapes: Mapping[str, Sequence[int | str]]) -> str | None:
    """Return why arrays of inputs have no rows that could be joined; None if they have."""
    for number in range(len(files.parts)):
        for name, array in files.arrays(number).items():
            if array.ndim != len(shapes[name]):
                return f"{name!r} has no batch dimension in the data, where each row is a call"
    return None


def _images(source: FloatModel, options: ExportOptions, reporter: Reporter) -> _Given:
    """Return an image classifier, with training images."""
    from cpt_deploy.bundle import ImageProcessor
    from cpt_deploy.data import load_images
    from cpt_deploy.onnx_graph.reading.classifier import ImageClassifier
    from cpt_deploy.onnx_graph.reading.running import Runner
    from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
    from cpt_deploy.tasks.interface import GOLDEN_SAMPLES
    from cpt_deploy.validation import spread

    opened = ImageClassifier.read(source.path)
    images = load_images(source.data, split="train", root=source.data_dir)
    labels = labels_of(source, images)
    preprocessing = preprocessing_of(source, images, opened.input_shape, reporter)
    network = opened.network(preprocessing.input_shape, len(labels))
    runner = Runner(network.original, network)
    seen = correct = 0

    def samples() -> Iterator[Arrays]:
        nonlocal seen, correct
        for inputs, wanted in calibration_batches(images, preprocessing, source.batches):
            sample = {INPUT_NAME: inputs.numpy()}
            correct += int((runner.run(sample)[OUTPUT_NAME].argmax(axis=1) == wanted.numpy()).sum())
            seen += len(wanted)
            yield sample

    def facts() -> dict[str, Any]:
        return {"dataset": dataset_name(source.data)} | note_accuracy(correct, seen, len(labels), reporter)

    processor = ImageProcessor(preprocessing, labels, options.pixels)
    golden = processor.inputs([images.image(int(place)) for place in spread(len(images), GOLDEN_SAMPLES)])
    return _Given(network, samples(), source.batches, golden, IMAGE_CLASSIFICATION, processor, facts)


def note_placement(quantized: "QuantizedOnnx", reporter: Reporter) -> None:
    """Report what of a network runs on integers, and what does not and why."""
    reporter.note(
        f"{100 * quantized.placement.integer_share:.4g} % of the MACs run on integers; {_in_words(quantized)}"
    )
    if quantized.placement.uncounted:
        reporter.note(f"the MACs inside of {', '.join(quantized.placement.uncounted)} are in float, and not counted")


def _in_words(quantized: "QuantizedOnnx") -> str:
    layers, operators = quantized.placement.float_layers, quantized.placement.float_operators
    reasons = Counter((layer.operator, layer.reason) for layer in layers)
    named = [f"{count} {kind}, since {reason}" for (kind, reason), count in reasons.most_common(3)]
    others = ", ".join(f"{count} {kind}" for kind, count in [*operators.items()][:6])
    parts = [*named, *([others] if others else [])]
    return f"in float stay {'; '.join(parts)}" if parts else "nothing is computed in float"


def _check_options(source: FloatModel, options: ExportOptions) -> None:
    """Check that only options are given that ONNX files have.

    Raises:
        UsageError: Otherwise.
    """
    if source.model is not None:
        raise UsageError("Expected --model with weights only, but an ONNX file holds its network itself")
    if has_input_files(Path(source.data)):
        images = {"--labels": source.labels, "--data-dir": source.data_dir, "--input uint8": options.pixels}
        images |= {f"--{key}": value for key, value in source.input.items()}
        for option, value in images.items():
            if value is not None:
                raise UsageError(f"Expected {option} with a data set of images only, but got it with {source.data}")


def _not_free(tensors: Sequence[TensorSpec]) -> str | None:
    """Return which tensor has no free batch; None if all have one."""
    tensor = next((tensor for tensor in tensors if tensor.batch != BATCH), None)
    if tensor is None:
        return None
    return f"the first dimension of {tensor.name!r} is {tensor.batch or 'none'}, not a free batch"


def _rows_to_try(ends: Arrays) -> Arrays:
    """Return a third row in addition to two, which may be equal: the first one in another order, with other reals."""
    tried = {}
    for name, array in ends.items():
        other = np.roll(array[:1], 1, axis=-1)
        tried[name] = np.concatenate([array, 0.5 * other + 0.25 if array.dtype.kind == "f" else other])
    return tried


def _why_apart(network: "OnnxNetwork", file: "OnnxNetwork", tried: Arrays) -> str | None:
    """Return why rows of several requests cannot be computed together; None if they can.

    Args:
        network: The network with a free batch.
        file: The network as it is in its file.
        tried: Rows of each input, on which it is tried.
    """
    from cpt_deploy.onnx_graph.reading.batches import fixed_batch
    from cpt_deploy.onnx_graph.reading.running import Measured, Runner
    from cpt_deploy.onnx_graph.reading.signatures import signature_of

    if (why := _not_free(signature_of(network, tried, {}).inputs)) is not None:
        return why
    try:
        together = Runner(network.original, network).run(tried)
    except (BundleError, ConversionError) as error:
        return f"it does not run on several rows: {error}"
    measured = {name: Measured(array.shape, array.dtype.kind == "f") for name, array in together.items()}
    if (why := _not_free(signature_of(network, tried, measured).outputs)) is not None:
        return why
    runner, batch = Runner(file.original, file), fixed_batch(file) or 1
    rows = [
        runner.run({name: np.repeat(array[row : row + 1], batch, axis=0) for name, array in tried.items()})
        for row in range(len(next(iter(tried.values()))))
    ]
    for row, alone in enumerate(rows):
        for name, several in alone.items():
            got, wanted = together[name][row : row + 1], several[:1]
            scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)) or 1.0
            if (
                len(together[name]) != len(rows)
                or got.shape != wanted.shape
                or not np.allclose(got, wanted, rtol=_INDEPENDENT, atol=_INDEPENDENT * scale, equal_nan=True)
            ):
                return f"the rows of {name!r} depend on each other"
    return None
