"""The evidence in a bundle: what `cpt validate` found, of which files, and whether they are those beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.bundle.runtime.providers import CPU, provider_name
from cpt_deploy.errors import BundleError, ValidationFailedError

T = TypeVar("T")

_AGAIN_HINT = "`cpt validate BUNDLE --data NAME` writes the evidence into the bundle"


@dataclass(frozen=True)
class Evidence:
    """The findings of a validation that a server acts on and shows.

    Args:
        content_sha256: Digest of all that can change an answer in the bundle that was validated.
        verdict: "passed", "failed", or "undecided" where the samples could not tell.
        passed: Whether it passed its gate.
        reasons: Why not; empty if it did.
        dataset: Name of the data set.
        samples: How many of its samples were measured.
        accuracy: Fraction that onnxruntime classified rightly; `None` if it was not measured.
        interval_95: Confidence interval of that.
        compared_integers: Integers of onnxruntime that were compared with the exact executor's; `None` if none were.
        mismatching_integers: How many differ.
        validated_at: When, ISO 8601 in UTC.
        split: Part of the data set that was measured.
        correct: How many samples onnxruntime classified rightly.
        trained_accuracy: Fraction that the trained model classified rightly before freezing.
        float_operators: Float layers left in onnxruntime's graph.
        runtime: Version of onnxruntime.
        cpu: Name of the processor.
        provider: onnxruntime's name of the execution provider that was measured.

    What was not measured or recorded is `None`.
    """

    content_sha256: str
    verdict: str
    passed: bool
    reasons: tuple[str, ...]
    dataset: str
    samples: int
    accuracy: float | None
    interval_95: tuple[float, float] | None
    compared_integers: int | None
    mismatching_integers: int | None
    validated_at: str
    split: str | None
    correct: int | None
    trained_accuracy: float | None
    float_operators: int | None
    runtime: str | None
    cpu: str | None
    provider: str


def read_evidence(bundle: OpenedBundle) -> Evidence | None:
    """Return what a bundle's validation.json says; `None` if there is none.

    Raises:
        BundleError: If it is not what `cpt validate` writes.
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


def require_evidence(bundle: OpenedBundle, provider: str = "cpu") -> Evidence:
    """Return a bundle's evidence if it vouches for the model beside it, as an execution provider runs it.

    Raises:
        BundleError: If validation.json is not what `cpt validate` writes.
        ValidationFailedError: If it is missing, of another file or provider, or says that the model failed.
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
            f"Expected the evidence in {bundle.path} to be of the {provider_name(provider)}, which rounds in its own "
            f"way, but it is of the {evidence.provider}",
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
    interval = served.get("interval_95")
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
        accuracy=_known(float, served.get("accuracy")),
        interval_95=None if interval is None else (float(interval[0]), float(interval[1])),
        compared_integers=_known(int, integers["compared"]),
        mismatching_integers=_known(int, integers["mismatching"]),
        validated_at=str(report["validated_at"]),
        split=_known(str, dataset.get("split")),
        correct=_known(int, served.get("correct")),
        trained_accuracy=_known(float, trained.get("accuracy")),
        float_operators=None if float_operators is None else sum(float_operators.values()),
        runtime=_known(str, (report.get("versions") or {}).get("onnxruntime")),
        cpu=_known(str, (report.get("cpu") or {}).get("model")),
        provider=str(report.get("provider", CPU)),
    )


def _known(kind: Callable[[Any], T], value: Any) -> T | None:
    return None if value is None else kind(value)
