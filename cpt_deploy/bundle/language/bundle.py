"""Open the bundle of a language model, or a bundle of either kind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.integrity.checksums import AGAIN_HINT, read_checksums, verify_checksums
from cpt_deploy.bundle.language.golden import GoldenText
from cpt_deploy.bundle.language.manifest import LanguageManifest
from cpt_deploy.bundle.language.text import TextCodec
from cpt_deploy.bundle.layout import (
    CONFIG_FILE,
    GOLDEN_FILE,
    LANGUAGE_FILES,
    LANGUAGE_KIND,
    QUANTIZATION_FILE,
    TOKENIZER_FILE,
    VALIDATION_FILE,
)
from cpt_deploy.bundle.opened import (
    OpenedBundle,
    bundle_kind,
    check_directory,
    own_section,
    read_file,
    read_json,
    require_listed,
)
from cpt_deploy.bundle.processors.tokenization import read_tokenizer
from cpt_deploy.errors import BundleError, DataError


@dataclass(frozen=True, eq=False)
class LanguageBundle(OpenedBundle):
    """An opened bundle of a language model.

    Args:
        path: Its directory.
        name: Name of the model, as clients address it.
        version: Version of the model, as clients address it.
        config: The content of config.json; this project's own facts are under "cpt".
        quantization: The content of quantization.json.
        validation: The report of `cpt validate`, if it was run.
        digests: SHA-256 of each file by its name, hexadecimal.
        manifest: Its tensors, its state and its context.
        text: Converts text to tokens and back.
        golden: Tokens with the logits that a runtime has to reproduce.
    """

    manifest: LanguageManifest
    text: TextCodec
    golden: GoldenText

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "LanguageBundle":
        """Open a bundle directory.

        Args:
            path: The directory.
            verify: Whether to compare every file with its checksum first.

        Raises:
            BundleError: If it is not a bundle of a language model, a file is missing, damaged or edited, or a newer
                version wrote it.
            MissingExtraError: If its tokenizer needs a package that is not installed.
        """
        directory = Path(path)
        check_directory(directory)
        digests = verify_checksums(directory) if verify else read_checksums(directory)
        config = read_json(directory, CONFIG_FILE, digests)
        own = own_section(directory, config)
        if own.get("kind") != LANGUAGE_KIND:
            raise BundleError(
                f"Expected a language model in {directory}, but it is an image classifier",
                hint=f"cpt predict {directory} IMAGE",
            )
        for name in LANGUAGE_FILES:
            require_listed(directory, name, digests)
        manifest = _manifest(directory, own)
        text = _text(directory)
        golden = GoldenText.from_bytes(read_file(directory, GOLDEN_FILE, digests))
        if text.size > manifest.vocabulary or golden.logits.shape[1] != manifest.vocabulary:
            raise BundleError(
                f"Expected tokens for the model's {manifest.vocabulary} logits in {directory}, but its tokenizer has "
                f"{text.size} and its golden sample {golden.logits.shape[1]}",
                hint=AGAIN_HINT,
            )
        return cls(
            path=directory,
            name=own["name"],
            version=own["version"],
            config=config,
            quantization=read_json(directory, QUANTIZATION_FILE, digests),
            validation=read_json(directory, VALIDATION_FILE, digests) if VALIDATION_FILE in digests else None,
            digests=digests,
            manifest=manifest,
            text=text,
            golden=golden,
        )


def _manifest(directory: Path, own: dict[str, Any]) -> LanguageManifest:
    try:
        return LanguageManifest.from_dict(own.get("language") or {})
    except ValueError as error:
        raise BundleError(f"Expected {directory / CONFIG_FILE} to hold {error}", hint=AGAIN_HINT) from error


def _text(directory: Path) -> TextCodec:
    try:
        return TextCodec(read_tokenizer(directory / TOKENIZER_FILE))
    except DataError as error:
        raise BundleError(error.message, hint=AGAIN_HINT) from error


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle | LanguageBundle:
    """Open a bundle of either kind.

    Args:
        path: Its directory.
        verify: Whether to compare every file with its checksum first.

    Raises:
        BundleError: As for `Bundle.open` and `LanguageBundle.open`.
        MissingExtraError: If a tokenizer needs a package that is not installed.
    """
    directory = Path(path)
    return (
        LanguageBundle.open(directory, verify=verify)
        if is_language(directory)
        else Bundle.open(directory, verify=verify)
    )


def is_language(directory: Path) -> bool:
    """Return whether a bundle says that it holds a language model; see `bundle_kind`."""
    return bundle_kind(directory) == LANGUAGE_KIND
