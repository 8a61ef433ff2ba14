"""What is known of a model before it is served: precision, size, and the report of `cpt validate`."""

from typing import Any

from pydantic import BaseModel, Field, ValidationError

import cpt_deploy
from cpt_deploy.bundle import Bundle

SERVED_RUNTIME = "onnxruntime"
"""The entry of a report that measures what this server runs."""


class InputFacts(BaseModel):
    """The size of the model's input."""

    channels: int
    height: int
    width: int


class Accuracy(BaseModel):
    """A share of right answers with its 95 % confidence interval."""

    value: float = Field(validation_alias="accuracy")
    interval_95: tuple[float, float]
    correct: int


class Integers(BaseModel):
    """How many integers of all quantized tensors were compared with the exact executor's, and how many differ."""

    compared: int
    mismatching: int


class MeasuredData(BaseModel):
    """The data set that was measured on."""

    name: str
    split: str
    samples: int


class ValidationFacts(BaseModel):
    """The report of `cpt validate` in short.

    A figure that was not measured is null.
    """

    passed: bool
    of_this_model: bool = Field(description="whether the report is of this very model.onnx")
    validated_at: str | None = None
    dataset: MeasuredData | None = None
    accuracy: Accuracy | None = Field(default=None, description="of what is served, in onnxruntime")
    trained_accuracy: float | None = Field(default=None, description="of the trained model before freezing")
    integers: Integers | None = None
    float_operators: int | None = Field(default=None, description="float layers left in onnxruntime's graph")
    runtime: str | None = None
    cpu: str | None = None


class Evidence(BaseModel):
    """Who a model is and what was measured of it; figures that are not known are null."""

    model: str
    version: str
    sha256: str
    size_bytes: int
    input: InputFacts
    classes: int
    weight_bits: int | None
    activation_bits: int | None
    cycle: tuple[int, int] | None = Field(description="the bits between which training cycled")
    validation: ValidationFacts | None = Field(description="null if `cpt validate` was never run")
    server_version: str
    docs: bool = Field(description="whether the server has /docs")


def evidence_of(bundle: Bundle, *, docs: bool = True) -> Evidence:
    """Return what is known of a bundle's model.

    Args:
        bundle: The bundle.
        docs: Whether the server that tells it has `/docs`.
    """
    channels, height, width = bundle.preprocessing.input_shape
    facts = bundle.facts
    return Evidence(
        model=bundle.name,
        version=bundle.version,
        sha256=bundle.sha256,
        size_bytes=bundle.onnx_path.stat().st_size,
        input=InputFacts(channels=channels, height=height, width=width),
        classes=len(bundle.labels),
        weight_bits=facts.get("weight_bits"),
        activation_bits=facts.get("activation_bits"),
        cycle=facts.get("cycle"),
        validation=_validation(bundle),
        server_version=cpt_deploy.__version__,
        docs=docs,
    )


def _validation(bundle: Bundle) -> ValidationFacts | None:
    """Return the report in short; one of another form counts as none, since nothing can be said from it."""
    report = bundle.validation
    if report is None:
        return None
    runtimes = {entry.get("name"): entry for entry in report.get("runtimes", ())}
    try:
        return ValidationFacts.model_validate(
            {
                "passed": report.get("passed"),
                "of_this_model": report.get("model_sha256") == bundle.sha256,
                "validated_at": report.get("validated_at"),
                "dataset": report.get("dataset"),
                "accuracy": runtimes.get(SERVED_RUNTIME),
                "trained_accuracy": runtimes.get("trained", {}).get("accuracy"),
                "integers": report.get("integers"),
                "float_operators": _float_operators(report),
                "runtime": _version(report, SERVED_RUNTIME),
                "cpu": (report.get("cpu") or {}).get("model"),
            }
        )
    except ValidationError:
        return None


def _float_operators(report: dict[str, Any]) -> int | None:
    operators = (report.get("graph") or {}).get("float_operators")
    return None if operators is None else sum(operators.values())


def _version(report: dict[str, Any], package: str) -> str | None:
    version = (report.get("versions") or {}).get(package)
    return None if version is None else f"{package} {version}"
