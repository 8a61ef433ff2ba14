"""Read the evidence in a bundle: the findings of `cpt validate`, and whether they are of the bundle's present files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.runtime.providers import CPU, provider_name
from cpt_deploy.errors import BundleError, ValidationFailedError
from cpt_deploy.metric import Metric

T = TypeVar("T")

_AGAIN_HINT = "`cpt validate BUNDLE --data NAME` writes the evidence into the bundle"


@dataclass(frozen=True)
class Evidence:
    """The findings of a validation that a server acts on and shows.

    Args:
        content_sha256: Digest of all files of the validated bundle that can change an answer.
        verdict: "passed", "failed", or "undecided" if there were too few samples.
        passed: Whether it passed its gate.
        reasons: The reasons for a failure; empty if it passed.
        dataset: Name of the data set.
        samples: Number of measured samples.
        unit: Name of the samples, in the plural.
        metric: What was measured.
        value: The metric in onnxruntime.
        interval_95: 95 % confidence interval of the value.
        trained_value: The metric of the trained model before freezing.
        compared_integers: Number of onnxruntime's integers that were compared with the exact executor's, or `None`.
        mismatching_integers: Number of integers that differ.
        validated_at: Time of the validation, ISO 8601 in UTC.
        split: The measured split of the data set.
        float_operators: Number of float operators left in onnxruntime's graph.
        runtime: Version of onnxruntime.
        cpu: Name of the processor.
        provider: onnxruntime's name of the measured execution provider.

    Values that were not measured or recorded are `None`.
    """

    content_sha256: str
    verdict: str
    passed: bool
    reasons: tuple[str, ...]
    dataset: str
    samples: int
    unit: str
    metric: Metric
    value: float | None
    interval_95: tuple[float, float] | None
    trained_value: float | None
    compared_integers: int | None
    mismatching_integers: int | None
    validated_at: str
    split: str | None
    float_operators: int | None
    runtime: str | None
    cpu: str | None
    provider: str


def read_evidence(bundle: Bundle) -> Evidence | None:
    """Return the evidence in a bundle's validation.json; `None` if there is none.

    Raises:
        BundleError: If the file does not have the form that `cpt validate` writes.
    """
    report = bundle.validation
    if report is None:
        return None
    try:
        return _parse(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"Expected the evidence of a validation in {bundle.path}, but got another content: {error!r:.100}",
            hint=_AGAIN_HINT,
        ) from error


def require_evidence(bundle: Bundle, provider: str = "cpu") -> Evidence:
    """Return a bundle's evidence if it is valid for the present files and the given execution provider.

    Raises:
        BundleError: If validation.json does not have the form that `cpt validate` writes.
        ValidationFailedError: If it is missing, of other files or another provider, or the model failed.
    """
    evidence = read_evidence(bundle)
    if evidence is None:
        raise ValidationFailedError(
            f"Expected {bundle.path} to hold the evidence of a validation, but it has no validation.json",
            hint=_AGAIN_HINT,
        )
    if evidence.content_sha256 != bundle.content_sha256:
        raise ValidationFailedError(
            f"Expected the evidence in {bundle.path} to be of its files ({bundle.content_sha256[:12]}…), "
            f"but it is of others ({evidence.content_sha256[:12]}…): a file was changed after the validation",
            hint=_AGAIN_HINT,
        )
    if evidence.provider != provider_name(provider):
        raise ValidationFailedError(
            f"Expected the evidence in {bundle.path} to be of the {provider_name(provider)}, which rounds differently, "
            f"but it is of the {evidence.provider}",
            hint=f"cpt validate BUNDLE --data NAME --provider {provider}",
        )
    if not evidence.passed or evidence.reasons:
        raise ValidationFailedError(
            f"Expected the model in {bundle.path} to have passed its validation, but it failed: "
            f"{'; '.join(evidence.reasons) or 'no reason is given'}",
            hint="validation.json has the details",
        )
    return evidence


def _parse(report: dict[str, Any]) -> Evidence:
    runtimes = {entry["name"]: entry for entry in report["runtimes"]}
    served, trained = runtimes.get("onnxruntime", {}), runtimes.get("trained", {})
    dataset, integers = report["dataset"], report["integers"] or {"compared": None, "mismatching": None}
    metric, interval = Metric.from_dict(report["metric"]), served.get("interval_95")
    float_operators = (report.get("graph") or {}).get("float_operators")
    if not isinstance(report["passed"], bool):
        raise TypeError(f"passed is {report['passed']!r:.50}")
    return Evidence(
        content_sha256=str(report["content_sha256"]),
        verdict=str(report["verdict"]),
        passed=report["passed"],
        reasons=tuple(str(reason) for reason in report["reasons"]),
        dataset=str(dataset["name"]),
        samples=int(dataset["samples"]),
        unit=str(dataset.get("unit", "samples")),
        metric=metric,
        value=_known(float, served.get(metric.name)),
        interval_95=None if interval is None else (float(interval[0]), float(interval[1])),
        trained_value=_known(float, trained.get(metric.name)),
        compared_integers=_known(int, integers["compared"]),
        mismatching_integers=_known(int, integers["mismatching"]),
        validated_at=str(report["validated_at"]),
        split=_known(str, dataset.get("split")),
        float_operators=None if float_operators is None else sum(float_operators.values()),
        runtime=_known(str, (report.get("versions") or {}).get("onnxruntime")),
        cpu=_known(str, (report.get("cpu") or {}).get("model")),
        provider=str(report.get("provider", CPU)),
    )


def _known(kind: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else kind(value)
