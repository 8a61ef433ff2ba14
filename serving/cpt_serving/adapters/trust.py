"""Whether a bundle may be served: its signature, its evidence, and the bytes of its model."""

import hashlib
import logging

from cpt_deploy.bundle import Bundle, read_evidence, require_evidence
from cpt_deploy.bundle.integrity.signatures import public_keys, require_signature
from cpt_deploy.errors import BundleError, ValidationFailedError
from cpt_serving.settings import ServeSettings

logger = logging.getLogger(__name__)


def verified_onnx(bundle: Bundle, settings: ServeSettings) -> bytes:
    """Return the bytes of model.onnx whose checksum was verified; the file itself could be replaced after that.

    Raises:
        BundleError: If the file was replaced or cannot be read.
        ValidationFailedError: If a signature or evidence is required and missing or invalid.
        DataError: If a public key cannot be used.
    """
    require_trust(bundle, settings)
    try:
        content = bundle.onnx_path.read_bytes()
    except OSError as error:
        raise BundleError(f"Expected to read {bundle.onnx_path}, but got: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != bundle.sha256:
        raise BundleError(f"Expected {bundle.onnx_path} as it was when its checksum was verified, but it has changed")
    return content


def require_trust(bundle: Bundle, settings: ServeSettings) -> None:
    """Raise an error unless a bundle has the required signature and evidence; warn if its evidence is outdated.

    Raises:
        ValidationFailedError: If a signature or evidence is required and missing or invalid.
        DataError: If a public key cannot be used.
    """
    if bundle.bare:
        for wanted, what in ((settings.require_evidence, "evidence"), (settings.require_signature, "a signature")):
            if wanted:
                raise ValidationFailedError(
                    f"Expected {what} of {bundle.path}, but it is an ONNX file without a bundle",
                    hint=f"cpt export --from {bundle.path} --data inputs.npz makes a bundle",
                )
        logger.warning("%s is served as it is: it has no bundle, and nothing proves its integers", bundle.path)
        return
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
            "a file of %s was changed after its validation: its evidence is outdated (cpt validate)", bundle.path
        )
