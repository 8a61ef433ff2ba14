"""Validate a bundle before serving: measure it against its origin, or check it without data."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, update_validation
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.bundle.layout import VALIDATION_PAGE
from cpt_deploy.bundle.runtime.providers import rounds_as_the_executor
from cpt_deploy.errors import DataError, MissingExtraError, UsageError, ValidationFailedError
from cpt_deploy.tasks import SILENT, BundleCheck, Evidence, Origin, Reporter, ValidationOptions, task_named
from cpt_deploy.tasks.evidence import WITHOUT_VNNI, saturation_in_words
from cpt_deploy.workflows.evidence_summary import summarize
from cpt_deploy.workflows.imported.inspected_files import tensor_samples
from cpt_deploy.workflows.imported.onnx_files import TASK as TENSORS
from cpt_deploy.workflows.origins import find_origin
from cpt_deploy.workflows.references import reference_of

if TYPE_CHECKING:
    from cpt_deploy.tasks import Task
    from cpt_deploy.validation import Reference, Samples, Scoring


def validate_bundle(path: Path, options: ValidationOptions, *, reporter: Reporter = SILENT) -> Evidence:
    """Measure a bundle on data, judge it against its origin, and store the evidence in it.

    Args:
        path: The bundle.
        options: The data, the model to compare with, and the allowed drop.
        reporter: Receives messages and progress.

    Raises:
        UsageError: If the bundle was not made from the given run or file, or options do not fit.
        MissingExtraError: If a package is not installed that the validation needs.
        DataError: If the bundle, the data or the run cannot be read.
        ValidationFailedError: If the bundle does not fit the data because its files contradict each other.
    """
    from cpt_deploy.validation import MAX_DROP, validate

    bundle = Bundle.open(path)
    _check_options(options)
    exact = options.require_exact
    if exact is None:
        installed = all(find_spec(package) is not None for package in ("torch", "onnx"))
        exact = installed and rounds_as_the_executor(options.provider)
    origin = find_origin(bundle, options.run, options.source)
    samples, scoring, unit, trained = _measured(bundle, origin, options)
    max_drop = options.max_drop
    if max_drop is None and trained is not None and not options.no_gate:
        max_drop = MAX_DROP
    with reporter.bar("validating", samples.count) as bar:
        report = validate(
            bundle,
            samples,
            scoring,
            unit=unit,
            trained=trained,
            max_drop=max_drop,
            allow_undecided=options.allow_undecided,
            require_exact=exact,
            provider=options.provider,
            reporter=bar,
        )
    content = report.to_dict()
    page = _page(bundle, content)
    update_validation(bundle, content, report.evaluation_results(), page=page)
    if page is not None and options.page is not None:
        options.page.write_text(page, encoding="utf-8")
    return Evidence(
        passed=report.passed,
        verdict=report.verdict,
        reasons=report.reasons,
        undecided=report.undecided,
        content=content,
        summary=summarize(report),
        report=report,
        page=None if page is None else options.page or bundle.path / VALIDATION_PAGE,
    )


def check_bundle(path: Path, *, provider: str = "cpu", require_exact: bool | None = None) -> BundleCheck:
    """Check a bundle without data: checksums, golden sample in onnxruntime, constants, and the bounds of its sums.

    Args:
        path: The bundle.
        provider: Execution provider of onnxruntime.
        require_exact: Whether onnxruntime must reproduce the golden sample; None requires it on a CPU.

    Raises:
        BundleError: If there is no bundle, or a file was changed after the export.
    """
    from cpt_deploy.validation import compare_constants, constant_reasons

    bundle = Bundle.open(path)
    exact = rounds_as_the_executor(provider) if require_exact is None else require_exact
    # Compare the constants first: onnxruntime may not even load a file with an edited one.
    constants = compare_constants(bundle) if find_spec("onnx") is not None else None
    golden = OnnxRuntimeModel(bundle.onnx_path, bundle.signature, provider=provider).reproduce_golden(bundle.golden)
    reasons = constant_reasons(constants)
    if exact and not golden.reproduced:
        reasons.append(f"{golden.mismatches} of {golden.values} {golden.what} of the golden sample were not reproduced")
    held = "" if constants is None or constants.differences else f", {constants.compared:,} constants are as exported"
    statement = (
        f"{golden.values - golden.mismatches} of {golden.values} {golden.what} of the golden sample are reproduced by "
        f"onnxruntime, checksums hold{held}"
    )
    bounds, portability = _bounds(bundle)
    content: dict[str, object] = {"golden": golden, "constants": constants}
    content |= {} if portability is None else {"saturation_possible": False}
    return BundleCheck([*reasons, *bounds], statement, content, portability)


def _measured(
    bundle: Bundle, origin: Origin, options: ValidationOptions
) -> "tuple[Samples, Scoring, str, Reference | None]":
    """Return the samples, how they are scored, their name, and the model to compare with."""
    if bundle.task == TENSORS:
        samples, scoring = tensor_samples(bundle, Path(options.data), origin.source, options.limit)
        return samples, scoring, "rows" if bundle.signature.joins_rows else "calls", None
    task = task_named(bundle.task)
    trained = reference_of(task, bundle, origin, options.data, options.data_dir, options.limit)
    return _samples(task, bundle, options), task.scoring(), task.unit, trained


def _check_options(options: ValidationOptions) -> None:
    if options.run is not None and options.source is not None:
        raise UsageError("Expected either --run or --from, but got both", hint="a bundle has one origin")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"Expected limit to be at least 1 sample, but got {options.limit}")
    if options.page is None:
        return
    if find_spec("matplotlib") is None:
        raise MissingExtraError("Expected Matplotlib for --html, but it is not installed", extra="train")
    if options.page.is_dir() or not options.page.parent.is_dir():
        found = "a directory" if options.page.is_dir() else f"no directory {readable.path(options.page.parent)}"
        raise UsageError(f"Expected --html to name a file that can be written, but there is {found}")


def _samples(task: "Task", bundle: Bundle, options: ValidationOptions) -> "Samples":
    """Return the samples as inputs of the bundle's processor."""
    try:
        return task.samples(options.data, options.data_dir, bundle.processor, bundle.signature, options.limit)
    except DataError as error:
        found = contradictions(bundle)  # an edited file explains why the data do not fit
        if found:
            raise ValidationFailedError("; ".join(found)) from error
        raise


def _page(bundle: Bundle, content: dict[str, object]) -> str | None:
    """Return the evidence as an HTML page; None without Matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    from cpt_deploy.report import render_validation_page

    return render_validation_page(content, getattr(bundle.processor, "labels", ()))


def _bounds(bundle: Bundle) -> tuple[list[str], str | None]:
    """Return the errors of a bundle's sums, and for a portable one the statement that it cannot saturate."""
    from cpt_deploy.validation import bundle_accumulators, bundle_portability, bundle_saturation, overflow_reasons

    overflows = overflow_reasons(bundle_accumulators(bundle))
    portability = bundle_portability(bundle)
    if portability is None:
        return overflows, None
    layers = bundle_saturation(bundle)
    line = f"{WITHOUT_VNNI}: {saturation_in_words(layers, portability)}"
    if any(layer.possible for layer in layers):
        return [*overflows, f"Expected a portable bundle to saturate nowhere, but {line}"], None
    return overflows, line
