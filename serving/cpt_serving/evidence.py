"""What is known of a model before it is served: precision, size, and the report of `cpt validate`."""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, Field

import cpt_deploy
from cpt_deploy.bundle import read_evidence
from cpt_deploy.bundle.integrity import evidence as bundle_evidence
from cpt_deploy.bundle.integrity.checksums import read_checksums
from cpt_deploy.bundle.layout import VALIDATION_FILE
from cpt_deploy.bundle.opened import OpenedBundle, read_json
from cpt_deploy.errors import BundleError
from cpt_serving.adapters import Adapter, ModelKind


class InputFacts(BaseModel):
    """The size of the model's input."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Validation(bundle_evidence.Evidence):
    """The report of `cpt validate` in short; a figure that was not measured is null.

    Args:
        of_this_model: Whether the report is of the files of this bundle as they are.
        perplexity: Of a language model as served, in onnxruntime.
        trained_perplexity: Of the trained model before freezing.
    """

    of_this_model: bool
    perplexity: float | None
    trained_perplexity: float | None


class Evidence(BaseModel):
    """Who a model is and what was measured of it; figures that are not known are null."""

    model: str
    version: str
    sha256: str
    kind: ModelKind
    size_bytes: int | None
    input: InputFacts | None = Field(default=None, description="null for a language model")
    classes: int | None = Field(default=None, description="null for a language model")
    vocabulary: int | None = Field(default=None, description="tokens that a language model knows, null for others")
    context: int | None = Field(
        default=None, description="most tokens that a language model looks at, null if nothing limits them"
    )
    weight_bits: int | float | None = Field(description="with bits by layer their mean over all weights")
    activation_bits: int | None
    cycle: tuple[int, int] | None = Field(description="the bits between which training cycled")
    validation: Validation | None = Field(description="null if `cpt validate` was never run")
    server_version: str
    docs: bool = Field(description="whether the server has /docs")


def evidence_of(adapter: Adapter, *, docs: bool = True) -> Evidence:
    """Return what is known of a model, with the report of `cpt validate` as it is in its directory now.

    Args:
        adapter: The model's.
        docs: Whether the server that tells it has `/docs`.
    """
    bundle = adapter.bundle
    facts = bundle.facts
    return Evidence(
        model=bundle.name,
        version=bundle.version,
        sha256=bundle.sha256,
        kind=adapter.kind,
        size_bytes=_size(bundle),
        weight_bits=facts.get("weight_bits"),
        activation_bits=facts.get("activation_bits"),
        cycle=facts.get("scheduled"),
        validation=_validation(bundle),
        server_version=cpt_deploy.__version__,
        docs=docs,
        **adapter.evidence(),
    )


def _size(bundle: OpenedBundle) -> int | None:
    try:
        return bundle.onnx_path.stat().st_size
    except OSError:  # its directory was taken away while it is served
        return None


def _report(bundle: OpenedBundle) -> dict[str, Any] | None:
    """Return the report that stands in a bundle's directory now; a model is often validated after it was loaded."""
    try:
        digests = read_checksums(bundle.path)
        return read_json(bundle.path, VALIDATION_FILE, digests) if VALIDATION_FILE in digests else None
    except BundleError:
        return bundle.validation


def _validation(bundle: OpenedBundle) -> Validation | None:
    """Return the report in short; one of another form counts as none, since nothing can be said from it."""
    report = _report(bundle)
    try:
        found = read_evidence(replace(bundle, validation=report))
    except BundleError:
        return None
    if found is None or report is None:
        return None
    perplexities = {entry["name"]: entry.get("perplexity") for entry in report["runtimes"]}
    return Validation(
        **vars(found),
        of_this_model=found.content_sha256 == bundle.content_sha256,
        perplexity=perplexities.get("onnxruntime"),
        trained_perplexity=perplexities.get("trained"),
    )
