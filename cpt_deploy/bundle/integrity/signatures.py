"""Sign bundles and verify signatures, by the OpenSSF's `model-signing` library with elliptic-curve keys.

SHA256SUMS only detects accidents: anyone who can write a bundle can write its checksums too. A signature can be made
only with the private key. It covers all files of the bundle but itself, and is stored among them as a Sigstore bundle
that the library's own command can read too.
"""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.checksums import AGAIN_HINT
from cpt_deploy.bundle.directories import locked, replace_files
from cpt_deploy.bundle.layout import SIGNATURE_FILE, SUMS_FILE
from cpt_deploy.errors import BundleError, DataError, MissingExtraError, ValidationFailedError

_KEY_HINT = (
    "openssl ecparam -name prime256v1 -genkey -noout -out release.key; "
    "openssl ec -in release.key -pubout -out release.pub"
)
_SIGN_HINT = "with the private key, sign it again: cpt sign BUNDLE --key KEY"
_KEY_FILES = ("*.pub", "*.pem")
_MISMATCHES = (
    ("{} is not as it was signed", r"Hash mismatch for \\?'([^'\\]*)"),
    ("{} was added", r"Extra files found in model [^:]*: ([^\"'\]]*)"),
    ("{} is missing", r"Missing files in model [^:]*: ([^\"'\]]*)"),
)
"""Patterns for the library's messages, which are the only source of the reasons."""


def sign_bundle(bundle: Bundle, key: Path) -> Path:
    """Sign a bundle; an earlier signature is replaced.

    Args:
        bundle: The bundle, whose checksums were verified.
        key: File of an unencrypted private key in PEM, of the curve P-256, P-384 or P-521.

    Returns:
        The file of the signature.

    Raises:
        MissingExtraError: If `model-signing` is not installed.
        DataError: If the key cannot be used.
        BundleError: If the directory has files that SHA256SUMS does not list, or cannot be written.
    """
    library = require_signing()
    _check_listed(bundle)
    try:
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable_key(key, "a private key without a password", error) from error
    path = bundle.path / SIGNATURE_FILE
    pending = bundle.path / f".{SIGNATURE_FILE}.new"
    try:
        with locked(bundle.path, to_write=True):
            signer.set_hashing_config(_hashing(library, (SIGNATURE_FILE, pending.name))).sign(bundle.path, pending)
            replace_files(bundle.path, {SIGNATURE_FILE: pending.read_bytes()})
            pending.unlink()
    except (OSError, ValueError) as error:
        pending.unlink(missing_ok=True)
        raise BundleError(f"Expected to sign {bundle.path}, but got: {error}") from error
    return path


def require_signature(bundle: Bundle, keys: Sequence[Path]) -> Path:
    """Return the public key that verifies a bundle's signature.

    Args:
        bundle: The bundle. The digests at its opening count, not the files that are in the directory now.
        keys: Files of public keys in PEM; one of them has to match.

    Raises:
        MissingExtraError: If `model-signing` is not installed.
        DataError: If a key cannot be used.
        ValidationFailedError: If there is no signature, it was made with another key, or a file is not as it was
            signed.
    """
    library = require_signing()
    signature = bundle.path / SIGNATURE_FILE
    if not signature.is_file():
        raise ValidationFailedError(
            f"Expected {bundle.path} to be signed, but it has no {SIGNATURE_FILE}", hint=_SIGN_HINT
        )
    reasons = []
    for key in keys:
        verifier = _verifier(library, key)
        try:
            verifier.verify(bundle.path, signature)
            _check_covered(bundle, signature)
        except ValidationFailedError:
            raise
        # exceptions of its parsers on hostile bytes have no common base; all of them mean an invalid signature
        except Exception as error:
            reasons.append(_reason(error))
            continue
        return key
    raise ValidationFailedError(
        f"Expected a signature of {bundle.path} by {_listed(keys)}, but it does not hold: {reasons[0]}", hint=_SIGN_HINT
    )


def public_keys(path: Path) -> list[Path]:
    """Return the public key files of a path: the file itself, or the files of a directory that end in .pub or .pem.

    Raises:
        MissingExtraError: If `model-signing` is not installed.
        DataError: If there is no key file, or one cannot be used.
    """
    library = require_signing()
    keys = sorted({key for ending in _KEY_FILES for key in path.glob(ending)}) if path.is_dir() else [path]
    if not keys:
        raise DataError(f"Expected public keys that end in .pub or .pem in {path}, but there are none", hint=_KEY_HINT)
    for key in keys:
        _verifier(library, key)
    return keys


def require_signing() -> Any:
    """Import and return `model_signing`.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Expected the packages for signatures, but {error.name} is not installed",
            extra="signing",
        ) from error
    return model_signing


def _hashing(library: Any, ignored: Sequence[str]) -> Any:
    """Return the hashing settings: SHA-256 of each whole file, as in SHA256SUMS."""
    return library.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _verifier(library: Any, key: Path) -> Any:
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable_key(key, "a public key", error) from error
    return verifier.set_hashing_config(_hashing(library, (SIGNATURE_FILE,)))


def _unusable_key(key: Path, kind: str, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0].partition(". ")[0]
    return DataError(
        f"Expected {kind} of the curve P-256, P-384 or P-521 in {key}, but got: {reason or type(error).__name__}",
        hint=_KEY_HINT,
    )


def _check_listed(bundle: Bundle) -> None:
    known = {*bundle.digests, SUMS_FILE, SIGNATURE_FILE}
    foreign = sorted(entry.name for entry in bundle.path.iterdir() if entry.name not in known)
    if foreign:
        raise BundleError(
            f"Expected files in {bundle.path} that {SUMS_FILE} lists, but got {', '.join(foreign[:3])} too",
            hint=f"move them out, or {AGAIN_HINT}",
        )


def _check_covered(bundle: Bundle, signature: Path) -> None:
    """Raise unless the signed digest of every file equals the digest with which the bundle was opened."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    signed = {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    for name, digest in bundle.digests.items():
        if signed.get(name) != digest:
            raise ValidationFailedError(
                f"Expected a signature of {bundle.path} over {name} as it was opened, but it is of "
                f"{'another content' if name in signed else 'the other files only'}",
                hint=_SIGN_HINT,
            )


def _reason(error: Exception) -> str:
    text = str(error)
    if "Key mismatch" in text:
        return "it was made with another key"
    found = [said.format(match.group(1)) for said, pattern in _MISMATCHES for match in re.finditer(pattern, text)]
    return "; ".join(found) or f"it is damaged ({type(error).__name__})"


def _listed(keys: Sequence[Path]) -> str:
    return keys[0].name if len(keys) == 1 else f"one of {len(keys)} keys"
