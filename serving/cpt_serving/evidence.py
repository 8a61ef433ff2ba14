"""The facts of a served model: precision, size, and the report of `cpt validate`."""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, Field

import cpt_deploy
from cpt_deploy.bundle import Bundle, read_evidence
from cpt_deploy.bundle.checksums import read_checksums
from cpt_deploy.bundle.integrity import evidence as bundle_evidence
from cpt_deploy.bundle.layout import VALIDATION_FILE
from cpt_deploy.bundle.reading import read_json
from cpt_deploy.errors import BundleError
from cpt_serving.adapters import Adapter


@dataclass(frozen=True)
class Validation(bundle_evidence.Evidence):
    """A short form of the report of `cpt validate`; a figure that was not measured is null.

    Args:
        of_this_model: Whether the report is of the bundle's files in their present state.
    """

    of_this_model: bool


class Evidence(BaseModel):
    """Identity of a model and its measured figures; unknown figures are null."""

    model: str
    version: str
    sha256: str
    task: str = Field(description="a pipeline tag, such as image-classification")
    form: str = Field(description="form of the page for its requests: tensors, image or text")
    size_bytes: int | None
    facts: dict[str, int | str | None] = Field(description="of its requests and answers, such as the number of classes")
    weight_bits: int | float | None = Field(description="the mean over all weights if layers differ")
    activation_bits: int | None
    trained_bits: tuple[int, int] | None = Field(description="min_bits and max_bits of the training")
    validation: Validation | None = Field(description="null if `cpt validate` was never run")
    bare: bool = Field(description="whether it is an ONNX file without a bundle, for which nothing is proven")
    server_version: str
    docs: bool = Field(description="whether the server has /docs")


def evidence_of(adapter: Adapter, *, docs: bool = True) -> Evidence:
    """Return the facts of a model, with the report of `cpt validate` as it is in its directory now.

    Args:
        adapter: Adapter of the model.
        docs: Whether the server has `/docs`.
    """
    bundle = adapter.bundle
    facts = bundle.facts
    return Evidence(
        model=bundle.name,
        version=bundle.version,
        sha256=bundle.sha256,
        task=bundle.task,
        form=adapter.form,
        facts=adapter.facts(),
        size_bytes=_size(bundle),
        weight_bits=facts.get("weight_bits"),
        activation_bits=facts.get("activation_bits"),
        trained_bits=facts.get("trained_bits"),
        validation=None if bundle.bare else _validation(bundle),
        bare=bundle.bare,
        server_version=cpt_deploy.__version__,
        docs=docs,
    )


def _size(bundle: Bundle) -> int | None:
    try:
        return bundle.onnx_path.stat().st_size
    except OSError:  # its directory was removed while the model is served
        return None


def _report(bundle: Bundle) -> dict[str, Any] | None:
    """Return the report that is in a bundle's directory now; a model is often validated after it was loaded."""
    try:
        digests = read_checksums(bundle.path)
        return read_json(bundle.path, VALIDATION_FILE, digests) if VALIDATION_FILE in digests else None
    except BundleError:
        return bundle.validation


def _validation(bundle: Bundle) -> Validation | None:
    """Return a short form of the report; a report in another format counts as none."""
    try:
        found = read_evidence(replace(bundle, validation=_report(bundle)))
    except BundleError:
        return None
    if found is None:
        return None
    return Validation(**vars(found), of_this_model=found.content_sha256 == bundle.content_sha256)
