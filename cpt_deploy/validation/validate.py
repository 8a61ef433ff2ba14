"""The gate between training and serving: run a bundle on real samples in every runtime, and decide if it passes."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, Preprocessing
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.bundle.layout import ANNOUNCED
from cpt_deploy.bundle.processors.image_processor import exported_labels
from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.operators import float_operators, optimized_operators, unannounced_operators
from cpt_deploy.bundle.runtime.providers import keeps_operators, provider_name
from cpt_deploy.bundle.runtime.sessions import PORTABLE_KEY
from cpt_deploy.errors import BundleError, DataError, UsageError
from cpt_deploy.validation.accuracy.noninferiority import check_allowed
from cpt_deploy.validation.accuracy.reference import Reference, recorded_accuracy
from cpt_deploy.validation.comparison import IntegerComparison
from cpt_deploy.validation.gate import judge
from cpt_deploy.validation.integers.accumulators import bundle_accumulators
from cpt_deploy.validation.integers.integer_model import BundledIntegerModel, IntegerModel
from cpt_deploy.validation.integers.intermediate_outputs import with_intermediate_outputs
from cpt_deploy.validation.integers.saturation import LayerSaturation, bundle_portability, bundle_saturation
from cpt_deploy.validation.measuring import Batch, Subject, ValidationReporter, measure
from cpt_deploy.validation.onnx.constants import compare_constants
from cpt_deploy.validation.onnx.formats import load_formats, program_files
from cpt_deploy.validation.performance.software import software_versions
from cpt_deploy.validation.report import DatasetFacts, FloatFacts, Gate, GoldenFacts, GraphFacts, ValidationReport

ChosenIntegerModel = IntegerModel | Literal["bundled"] | None
"""An integer model, the executor on the bundle's own graph, or none."""

PIXELS_AT_A_TIME = 2**19
"""Limits the batch size, which is 64 for small images and 10 for 224 x 224."""


class LabelledImages(Protocol):
    """The interface of data sets for `validate`, implemented by `cpt_deploy.data.ImageSet`."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def split(self) -> str:
        """Name of the split."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each image, int64 (N,)."""
        ...

    def image(self, index: int, /) -> npt.NDArray[np.uint8] | Image.Image:
        """Return one image, uint8 (H, W[, 3]) or a Pillow image."""
        ...

    def digest(self) -> str:
        """Return the SHA-256 of the content, hexadecimal."""
        ...

    def __len__(self) -> int: ...


def validate(  # noqa: PLR0913  subject, samples and requirements
    bundle: Bundle,
    images: LabelledImages,
    *,
    trained: Reference | None = None,
    integer_model: ChosenIntegerModel = "bundled",
    max_drop: float | None = None,
    allow_undecided: bool = False,
    require_exact: bool = False,
    limit: int | None = None,
    provider: str = "cpu",
    reporter: ValidationReporter | None = None,
) -> ValidationReport:
    """Validate a bundle on labelled images.

    The same samples run through the trained model (if given), with its own preprocessing; and, with the bundle's
    preprocessing, through the integer executor, onnxruntime as it serves and with its optimizations off, and each
    further format of the bundle. Accuracies, logits, and every integer of every quantized tensor of the executor and
    onnxruntime are compared; and, without running anything, the constants of model.onnx with those of the integer
    graph, and the bundle's files with each other and with the run. If parts of a network compute in float, the executor
    is replayed from onnxruntime's integers at the boundary of each integer part.

    Args:
        bundle: The bundle.
        images: The samples, with labels in the order of the bundle's.
        trained: The trained model at max_bits, with its preprocessing and labels.
        integer_model: The reference for onnxruntime's integers: the executor on the bundle's own graph, another one, or
            none. If PyTorch or `onnx` is missing, the integers are not compared and a note says so.
        max_drop: Max drop of accuracy from the trained model to onnxruntime in points; see `noninferiority`.
        allow_undecided: Whether a bundle also passes if these samples cannot decide on the drop.
        require_exact: Whether any differing integer fails the bundle, and any differing logit of a further format.
        limit: Number of samples to measure, spread evenly over the set; `None` measures all.
        provider: The execution provider of onnxruntime: "cpu", "cuda", "tensorrt", or onnxruntime's name of one.
        reporter: Receives the progress.

    Returns:
        The evidence, with the verdict in `passed` and `reasons`.

    Raises:
        UsageError: If a drop is to be judged without a trained model, exactness without an integer model, or a number
            is out of range.
        MissingExtraError: If exactness is required and PyTorch or `onnx` is not installed, or the installed onnxruntime
            lacks the provider.
        DataError: If the data set does not fit the bundle, or an image cannot be read.
        BundleError: If onnxruntime cannot run the bundle, or PyTorch one of its further formats.
    """
    gate = Gate(max_drop, require_exact, allow_undecided)
    _check_arguments(gate, trained, integer_model, limit)
    processor = bundle.expect_processor(ImageProcessor)
    labels = exported_labels(bundle.config) or processor.labels
    notes = _check_classes(processor, images, labels if trained is None else trained.classes)
    indices = _spread(len(images), limit)
    subject, missing = _subject(bundle, trained, integer_model, gate, provider)
    measured = measure(subject, _batches(processor.preprocessing, images, indices, trained), len(indices), reporter)
    dataset = DatasetFacts(images.name, images.split, images.digest(), len(images), len(indices))
    recorded = recorded_accuracy(bundle) if trained is None else trained.recorded
    if recorded is not None and not recorded.is_of(dataset.name, dataset.sha256, dataset.samples):
        recorded = None
    saturation = bundle_saturation(bundle)
    check = subject.served.reproduce_golden(bundle.golden)
    return judge(
        ValidationReport(
            bundle=bundle.name,
            model_sha256=bundle.sha256,
            content_sha256=bundle.content_sha256,
            dataset=dataset,
            gate=gate,
            reasons=(),
            runtimes=measured.runtimes.runtimes(),
            comparisons=measured.runtimes.comparisons(),
            tensors=None if measured.integers is None else measured.integers.results(),
            golden=GoldenFacts(check.values, check.mismatches, check.worst_codes, check.tolerance, check.worst),
            graph=_graph_facts(bundle, provider),
            saturation=saturation,
            accumulators=bundle_accumulators(bundle),
            cpu=read_cpu(),
            versions=software_versions(),
            validated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=(*notes, *missing, *measured.notes),
            portability=bundle_portability(bundle),
            unoptimized_tensors=None if measured.unoptimized is None else measured.unoptimized.results(),
            constants=compare_constants(bundle) if find_spec("onnx") is not None else None,
            confusion=measured.confusion,
            logit_pairs=measured.logit_pairs,
            reference="float model" if bundle.calibrated else "trained model",
            provider=provider_name(provider),
            float_parts=_float_facts(bundle, measured.free_running),
            contradictions=(
                *([] if trained is None else trained.differences(bundle)),
                *contradictions(bundle),
                *file_contradictions(bundle, saturation),
            ),
            recorded=recorded,
            served_logits=measured.served_logits,
            trained_codes=measured.trained_codes,
        )
    )


def file_contradictions(bundle: Bundle, saturation: Sequence[LayerSaturation]) -> list[str]:
    """Return false claims of model.onnx, as sentences."""
    possible = sum(layer.possible for layer in saturation)
    if not possible or PORTABLE_KEY.encode() not in bundle.onnx_path.read_bytes():
        return []
    return [f"model.onnx says that no sum can saturate on any processor, but in {possible} layers one can"]


def _float_facts(bundle: Bundle, free_running: IntegerComparison | None) -> FloatFacts | None:
    parts = bundle.float_parts
    if parts is None:
        return None
    try:
        return FloatFacts(
            {str(name): int(count) for name, count in parts["operators"].items()},
            int(parts["integer_macs"]),
            int(parts["float_macs"]),
            str(parts["reason"]),
            None if free_running is None else free_running.results(),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe its float parts, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def _check_arguments(
    gate: Gate,
    trained: Reference | None,
    integer_model: ChosenIntegerModel,
    limit: int | None,
) -> None:
    if gate.max_drop is not None and trained is None:
        raise UsageError(
            "Expected the trained model, to measure the drop in accuracy against, but got none",
            hint="give the run that the bundle was exported from, or no limit for the drop",
        )
    if gate.max_drop is not None:
        check_allowed(gate.max_drop)
    if gate.require_exact and integer_model is None:
        raise UsageError("Expected an integer model, to compare the integers with, but got none")
    if limit is not None and limit < 1:
        raise UsageError(f"Expected limit to be at least 1 sample, but got {limit}")


def _check_classes(processor: ImageProcessor, images: LabelledImages, labels: Sequence[str]) -> list[str]:
    """Return a note if the class names differ, which may be intended: labels can be renamed at export.

    Args:
        processor: The processor of the bundle.
        images: The samples.
        labels: Labels of the trained model, or those that the bundle was exported with; labels.txt has to have as many.
    """
    classes, labels = list(images.classes), list(labels)
    if classes == labels:
        return []
    if not len(classes) == len(labels) == len(processor.labels) or sorted(classes) == sorted(labels):
        raise DataError(
            f"Expected the {len(labels)} classes of the bundle in their order ({', '.join(labels[:3])}, ...), "
            f"but {images.name} ({images.split}) has {len(classes)} ({', '.join(classes[:3])}, ...)",
            hint="validate on the data set that the model was trained for",
        )
    return [f"the data set names its classes otherwise than the bundle ({classes[0]!r} for {labels[0]!r}, ...)"]


def _spread(size: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return up to `limit` indices spread evenly, since many sets are sorted by class."""
    count = size if limit is None else min(limit, size)
    return np.arange(count, dtype=np.int64) * size // count


def _batches(
    preprocessing: Preprocessing,
    images: LabelledImages,
    indices: npt.NDArray[np.int64],
    trained: Reference | None,
) -> Iterator[Batch]:
    height, width = preprocessing.size
    # All tensors of a batch are in memory at once, in the executor as float32.
    batch_size = max(1, min(64, PIXELS_AT_A_TIME // (height * width)))
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        pictures = [images.image(int(index)) for index in chosen]
        inputs = trained_inputs = np.stack([preprocessing.apply(picture) for picture in pictures])
        if trained is not None and trained.preprocessing != preprocessing:
            trained_inputs = np.stack([trained.preprocessing.apply(picture) for picture in pictures])
        yield Batch(inputs, trained_inputs, images.labels[chosen])


def _subject(
    bundle: Bundle,
    trained: Reference | None,
    integer_model: ChosenIntegerModel,
    gate: Gate,
    provider: str,
) -> tuple[Subject, list[str]]:
    """Set up the runtimes; a missing package is an error if exactness is required, otherwise a note."""
    notes = []
    with_onnx, with_torch = find_spec("onnx") is not None, find_spec("torch") is not None
    if integer_model == "bundled" and not with_torch and not gate.require_exact:
        integer_model = None
        notes.append("the integer executor did not run: PyTorch is not installed")
    if not with_onnx:
        notes.append("operators, constants and inner integers were not compared: the package onnx is not installed")
    notes += [] if with_torch else [f"{file} did not run: PyTorch is not installed" for file in program_files(bundle)]
    if not keeps_operators(provider):
        notes.append(f"the {provider_name(provider)} compiles the graph: its operators cannot be listed")
    look_inside = integer_model is not None and (with_onnx or gate.require_exact)
    executor = BundledIntegerModel(bundle) if integer_model == "bundled" else integer_model
    replay = executor if isinstance(executor, BundledIntegerModel) and bundle.float_parts is not None else None
    products = () if replay is None else replay.products
    subject = Subject(
        served=OnnxRuntimeModel(bundle.onnx_path, bundle.signature, threads=None, provider=provider),
        unoptimized=OnnxRuntimeModel(
            bundle.onnx_path, bundle.signature, threads=None, optimize=False, provider=provider
        ),
        trained=None if trained is None else trained.model,
        executor=executor,
        observable=with_intermediate_outputs(bundle.onnx_path.read_bytes(), provider, products)
        if look_inside
        else None,
        formats=load_formats(bundle) if with_torch or gate.require_exact else {},
        provider=provider,
        replay=replay,
        logit_scale=executor.logit_scale if isinstance(executor, BundledIntegerModel) else None,
    )
    return subject, notes


def _graph_facts(bundle: Bundle, provider: str) -> GraphFacts | None:
    if find_spec("onnx") is None or not keeps_operators(provider):
        return None
    model = bundle.onnx_path.read_bytes()
    floats = float_operators(model, provider)
    unannounced = unannounced_operators(floats, bundle.quantization.get(ANNOUNCED))
    return GraphFacts(optimized_operators(model, provider), floats, unannounced)
