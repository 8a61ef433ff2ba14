"""The gate between training and serving: run a bundle on real samples in every runtime, and decide if it passes."""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Literal

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.bundle.layout import ANNOUNCED
from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.operators import float_operators, optimized_operators, unannounced_operators
from cpt_deploy.bundle.runtime.providers import keeps_operators, provider_name
from cpt_deploy.bundle.runtime.sessions import PORTABLE_KEY
from cpt_deploy.errors import BundleError, DataError, UsageError
from cpt_deploy.integer.accumulators import LayerSaturation
from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP, NonInferiority, check_allowed
from cpt_deploy.validation.accuracy.reference import Reference, processor_differences, recorded_metric
from cpt_deploy.validation.accuracy.samples import OTHER_DATA, Samples
from cpt_deploy.validation.accuracy.scoring import Scoring
from cpt_deploy.validation.facts import DatasetFacts, FloatFacts, Gate, GraphFacts, RecordedFacts
from cpt_deploy.validation.gate import judge
from cpt_deploy.validation.integers.integer_model import ExecutedGraph, bundled_integer_model
from cpt_deploy.validation.integers.intermediate_outputs import with_intermediate_outputs
from cpt_deploy.validation.integers.saturation import bundle_accumulators, bundle_portability, bundle_saturation
from cpt_deploy.validation.measuring import SERVED, TRAINED, Measurement, Subject, ValidationReporter, measure
from cpt_deploy.validation.onnx.constants import compare_constants
from cpt_deploy.validation.onnx.formats import load_formats, program_files
from cpt_deploy.validation.performance.software import software_versions
from cpt_deploy.validation.report import ValidationReport

ChosenIntegerModel = ExecutedGraph | Literal["bundled"] | None
"""An integer model, the executor on the bundle's own graph, or none."""


def validate(  # noqa: PLR0913  subject, samples and requirements
    bundle: Bundle,
    samples: Samples,
    scoring: Scoring,
    *,
    unit: str = "samples",
    trained: Reference | None = None,
    integer_model: ChosenIntegerModel = "bundled",
    max_drop: float | None = None,
    allow_undecided: bool = False,
    require_exact: bool = False,
    provider: str = "cpu",
    reporter: ValidationReporter | None = None,
) -> ValidationReport:
    """Validate a bundle of any task on samples.

    The same samples run through the trained model (if given), as inputs of its own processor; and, as inputs of the
    bundle's processor, through the integer executor, onnxruntime as it serves and with its optimizations off, and each
    further format of the bundle. Scores, outputs, and every integer of every quantized tensor of the executor and
    onnxruntime are compared; and, without running anything, the constants of model.onnx with those of the integer
    graph, and the bundle's files with each other and with the run. If parts of a network compute in float, the executor
    is replayed from onnxruntime's integers at the boundary of each integer part.

    Args:
        bundle: The bundle.
        samples: The samples as inputs of the bundle's processor.
        scoring: How the task scores outputs.
        unit: Name of the samples, in the plural.
        trained: The trained model at max_bits, with the samples of its own processor.
        integer_model: The reference for onnxruntime's integers: the executor on the bundle's own graph, another one, or
            none. If PyTorch or `onnx` is missing, the integers are not compared and a note says so.
        max_drop: Max drop from the trained model to onnxruntime, in the unit of the scoring; see `noninferiority`.
        allow_undecided: Whether a bundle also passes if these samples cannot decide on the drop.
        require_exact: Whether any differing integer fails the bundle, and any differing output of a further format.
        provider: The execution provider of onnxruntime: "cpu", "cuda", "tensorrt", or onnxruntime's name of one.
        reporter: Receives the progress.

    Returns:
        The evidence, with the verdict in `passed` and `reasons`.

    Raises:
        UsageError: If a drop is to be judged without a trained model, exactness without an integer model, or a number
            is out of range.
        MissingExtraError: If exactness is required and PyTorch or `onnx` is not installed, or the installed onnxruntime
            lacks the provider.
        DataError: If a sample cannot be read.
        BundleError: If onnxruntime cannot run the bundle, or PyTorch one of its further formats.
    """
    gate = Gate(max_drop, require_exact, allow_undecided)
    _check_arguments(gate, trained, integer_model)
    saturation = bundle_saturation(bundle)
    contradicting = _contradictions(bundle, trained, saturation)
    _check_fit(samples, trained, contradicting)
    subject, missing = _subject(bundle, trained, integer_model, gate, provider)
    measured = measure(subject, samples, scoring, reporter)
    return judge(
        ValidationReport(
            bundle=bundle.name,
            task=bundle.task,
            metric=scoring.metric,
            drop_unit=scoring.unit,
            model_sha256=bundle.sha256,
            content_sha256=bundle.content_sha256,
            dataset=DatasetFacts(samples.name, samples.split, samples.sha256, samples.size, samples.count, unit),
            gate=gate,
            reasons=(),
            runtimes=measured.runtimes.runtimes(),
            comparisons=measured.runtimes.comparisons(),
            tensors=None if measured.integers is None else measured.integers.results(),
            golden=subject.served.reproduce_golden(bundle.golden),
            graph=_graph_facts(bundle, provider),
            saturation=saturation,
            accumulators=bundle_accumulators(bundle),
            cpu=read_cpu(),
            versions=software_versions(),
            validated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=(*samples.notes, *missing, *measured.notes),
            portability=bundle_portability(bundle),
            unoptimized_tensors=None if measured.unoptimized is None else measured.unoptimized.results(),
            constants=compare_constants(bundle) if find_spec("onnx") is not None else None,
            confusion=measured.confusion,
            output_pairs=measured.output_pairs,
            reference="float model" if bundle.calibrated else "trained model",
            provider=provider_name(provider),
            float_parts=_float_facts(bundle, measured),
            contradictions=contradicting,
            recorded=_recorded(bundle, samples, scoring, trained, measured),
            non_inferiority=_non_inferiority(measured, scoring, max_drop),
            served_outputs=measured.served_outputs,
            session_outputs=measured.session_outputs,
            trained_codes=measured.trained_codes,
            agreement=() if scoring.agreement is None else scoring.agreement.results(),
            detection=None if scoring.agreement is None else scoring.agreement.detection(),
        )
    )


def _contradictions(
    bundle: Bundle, trained: Reference | None, saturation: Sequence[LayerSaturation]
) -> tuple[str, ...]:
    """Return the contradictions of a bundle with the trained model, and between its own files, as sentences."""
    differences = [] if trained is None else processor_differences(bundle.processor, trained.processor, trained.source)
    return (*differences, *contradictions(bundle), *file_contradictions(bundle, saturation))


def _check_fit(samples: Samples, trained: Reference | None, contradicting: Sequence[str]) -> None:
    """Check that the samples fit the model: the trained one, or that of a bundle whose files agree."""
    problem = samples.problem if trained is None else trained.samples.problem
    if problem is not None and (trained is not None or not contradicting):
        raise DataError(problem, hint=OTHER_DATA)


def file_contradictions(bundle: Bundle, saturation: Sequence[LayerSaturation]) -> list[str]:
    """Return false claims of model.onnx, as sentences."""
    possible = sum(layer.possible for layer in saturation)
    if not possible or PORTABLE_KEY.encode() not in bundle.onnx_path.read_bytes():
        return []
    return [f"model.onnx says that no sum can saturate on any processor, but in {possible} layers one can"]


def _non_inferiority(measured: Measurement, scoring: Scoring, max_drop: float | None) -> NonInferiority | None:
    """Judge the drop from the trained model to onnxruntime against the allowed one, or else the default."""
    trained, served = (measured.scores.get(name) for name in (TRAINED, SERVED))
    if trained is None or served is None or not trained.paired_with(served):
        return None
    return scoring.judge(trained, served, MAX_DROP if max_drop is None else max_drop)


def _recorded(
    bundle: Bundle, samples: Samples, scoring: Scoring, trained: Reference | None, measured: Measurement
) -> RecordedFacts | None:
    """Compare the metric of the trained model recorded in training with that of the same samples here."""
    recorded = recorded_metric(bundle) if trained is None else trained.recorded
    if recorded is None or not recorded.is_of(samples):
        return None
    served = measured.scores[SERVED]
    if trained is None:
        lost = scoring.certain_loss(recorded.value, recorded.samples, served)
        return RecordedFacts(recorded.value, recorded.samples, None, differs=lost is not None, lost=lost)
    again = scoring.value(measured.scores[TRAINED]) if trained.again is None else trained.again()
    differs = scoring.remeasured_differs(recorded.value, again, recorded.samples)
    return RecordedFacts(recorded.value, recorded.samples, again, differs=differs)


def _float_facts(bundle: Bundle, measured: Measurement) -> FloatFacts | None:
    parts = bundle.float_parts
    if parts is None:
        return None
    try:
        return FloatFacts(
            {str(name): int(count) for name, count in parts["operators"].items()},
            int(parts["integer_macs"]),
            int(parts["float_macs"]),
            str(parts["reason"]),
            *(None if found is None else found.results() for found in (measured.free_running, measured.boundaries)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe its float parts, but got: {error!r}",
            hint="export the bundle again",
        ) from error


def _check_arguments(gate: Gate, trained: Reference | None, integer_model: ChosenIntegerModel) -> None:
    if gate.max_drop is not None and trained is None:
        raise UsageError(
            "Expected the trained model, to measure the drop against, but got none",
            hint="give the run that the bundle was exported from, or no limit for the drop",
        )
    if gate.max_drop is not None:
        check_allowed(gate.max_drop)
    if gate.require_exact and integer_model is None:
        raise UsageError("Expected an integer model, to compare the integers with, but got none")


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
    executor = bundled_integer_model(bundle) if integer_model == "bundled" else integer_model
    replay = executor if isinstance(executor, ExecutedGraph) and bundle.float_parts is not None else None
    products = () if replay is None else replay.products
    served, unoptimized = (
        OnnxRuntimeModel(bundle.onnx_path, bundle.signature, threads=None, optimize=optimize, provider=provider)
        for optimize in (True, False)
    )
    subject = Subject(
        signature=bundle.signature,
        served=served,
        unoptimized=unoptimized,
        trained=trained,
        executor=executor,
        observable=with_intermediate_outputs(bundle.onnx_path.read_bytes(), provider, products)
        if look_inside
        else None,
        formats=load_formats(bundle) if with_torch or gate.require_exact else {},
        provider=provider,
        replay=replay,
        output_scales=executor.output_scales if isinstance(executor, ExecutedGraph) else {},
    )
    return subject, notes


def _graph_facts(bundle: Bundle, provider: str) -> GraphFacts | None:
    if find_spec("onnx") is None or not keeps_operators(provider):
        return None
    model = bundle.onnx_path.read_bytes()
    floats = float_operators(model, provider)
    unannounced = unannounced_operators(floats, bundle.quantization.get(ANNOUNCED))
    return GraphFacts(optimized_operators(model, provider), floats, unannounced)
