"""Loading a bundle's model: its evidence where that is asked for, the session, a warm-up, and the golden sample."""

import hashlib
import logging

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, decode_image, read_evidence, require_evidence
from cpt_deploy.bundle.language import LanguageBundle, LanguageModel
from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.bundle.signatures import public_keys, require_signature
from cpt_deploy.errors import BundleError, ValidationFailedError
from cpt_serving.inference.examples import example_image
from cpt_serving.settings import ServeSettings

logger = logging.getLogger(__name__)


def load_model(bundle: Bundle, settings: ServeSettings) -> OnnxRuntimeModel:
    """Load a bundle's model, warm it up and let it reproduce the golden sample.

    Raises:
        BundleError: If onnxruntime cannot load it.
        UsageError: If there is no such execution provider.
        MissingExtraError: If the installed onnxruntime lacks the execution provider.
        ValidationFailedError: If the golden sample comes out differently, or evidence or a signature is required and
            does not hold.
    """
    _require_trust(bundle, settings)
    model = OnnxRuntimeModel(_verified_onnx(bundle), threads=settings.threads, provider=settings.provider)
    # Pillow loads its formats at the first image, which should not be a client's.
    model.run(bundle.preprocessing.apply(decode_image(example_image(bundle)))[None])
    if settings.golden == "off":
        return model
    check = model.reproduce_golden(bundle.golden)
    if check.reproduced or (settings.golden == "labels" and check.same_labels):
        return model
    how_far = f"{check.worst_codes} codes" if check.tolerance is None else f"{check.worst_logit:.3g}"
    raise ValidationFailedError(
        f"Expected {bundle.name} to reproduce its golden sample, but {check.mismatches} of {check.values} {check.what} "
        f"differ, by up to {how_far}, and the top classes {'agree' if check.same_labels else 'differ'}",
        hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
        "the setting golden=labels accepts it",
    )


def load_language_model(bundle: LanguageBundle, settings: ServeSettings) -> LanguageModel:
    """Load a language model and let it reproduce the golden sample, which warms it up.

    Raises:
        BundleError: If onnxruntime cannot load it.
        UsageError: If the execution provider is not available.
        ValidationFailedError: If the golden sample comes out differently, or evidence or a signature is required and
            does not hold.
    """
    _require_trust(bundle, settings)
    model = LanguageModel(_verified_onnx(bundle), bundle.manifest, threads=settings.threads, provider=settings.provider)
    check = model.reproduce_golden(bundle.golden)
    if settings.golden == "off" or check.within or (settings.golden == "labels" and check.same_tokens):
        return model
    raise ValidationFailedError(
        f"Expected {bundle.name} to reproduce its golden logits within {bundle.golden.tolerance:.3g}, but they differ "
        f"by up to {check.worst:.3g} and the most probable tokens {'agree' if check.same_tokens else 'differ'}",
        hint="other instruction sets and providers may round differently: `cpt validate` measures it, "
        "the setting golden=labels accepts it",
    )


def _require_trust(bundle: OpenedBundle, settings: ServeSettings) -> None:
    """Raise unless a bundle has the signature and the evidence that are asked for; say so if its evidence is of others.

    Raises:
        ValidationFailedError: If it does not.
        DataError: If a public key cannot be used.
    """
    if settings.require_signature is not None:
        require_signature(bundle, public_keys(settings.require_signature))
    if settings.require_evidence:
        require_evidence(bundle, settings.provider)
        return
    try:
        evidence = read_evidence(bundle)
    except BundleError as error:
        logger.warning("%s", error.message)
        return
    if evidence is not None and evidence.content_sha256 != bundle.content_sha256:
        logger.warning(
            "a file of %s was changed after its validation: its evidence is of others (cpt validate)", bundle.path
        )


def _verified_onnx(bundle: OpenedBundle) -> bytes:
    """Return the very bytes whose checksum holds: while a server runs, the file can be replaced after the check."""
    try:
        content = bundle.onnx_path.read_bytes()
    except OSError as error:
        raise BundleError(f"Expected to read {bundle.onnx_path}, but got: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != bundle.sha256:
        raise BundleError(f"Expected {bundle.onnx_path} as it was when its checksum was verified, but it has changed")
    return content
