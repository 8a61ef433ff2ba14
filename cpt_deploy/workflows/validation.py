"""Validate a bundle before serving: measure it against its origin, or check it without data."""

from importlib.util import find_spec
from pathlib import Path

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.providers import rounds_as_the_executor
from cpt_deploy.tasks import SILENT, BundleCheck, Evidence, Reporter, ValidationOptions, task_of_bundle
from cpt_deploy.tasks.evidence import WITHOUT_VNNI, saturation_in_words
from cpt_deploy.workflows.origins import find_origin


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
    """
    task = task_of_bundle(path)
    bundle = task.open_bundle(path)
    task.check_validation(options)
    exact = options.require_exact
    if exact is None:
        installed = all(find_spec(package) is not None for package in ("torch", "onnx"))
        exact = installed and rounds_as_the_executor(options.provider)
    origin = find_origin(bundle, options.run, options.source)
    return task.validate(bundle, options, origin, reporter, require_exact=exact)


def check_bundle(path: Path, *, provider: str = "cpu", require_exact: bool | None = None) -> BundleCheck:
    """Check a bundle without data: checksums, golden sample in onnxruntime, constants, and the bounds of its sums.

    Args:
        path: The bundle.
        provider: Execution provider of onnxruntime.
        require_exact: Whether onnxruntime must reproduce the integers of the golden sample; None requires it on a CPU.

    Raises:
        BundleError: If there is no bundle, or a file was changed after the export.
    """
    task = task_of_bundle(path)
    bundle = task.open_bundle(path)
    exact = rounds_as_the_executor(provider) if require_exact is None else require_exact
    found = task.check_bundle(bundle, provider, require_exact=exact)
    reasons, portability = _bounds(bundle)
    content = found.content if portability is None else {**found.content, "saturation_possible": False}
    return BundleCheck([*found.reasons, *reasons], found.statement, content, portability)


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
