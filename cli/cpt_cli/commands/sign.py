"""`cpt sign`: sign a bundle with a private key."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable


def sign(
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote, preferably validated by cpt validate.")],
    key: Annotated[Path, typer.Option(help="Private key in PEM, elliptic curve, without a password.")],
) -> None:
    """Sign all files of a bundle, including its evidence, so that nobody without the key can change one unnoticed.

    The signature, model.sig, is stored in the bundle and is a Sigstore bundle of the OpenSSF's model-signing library.
    cpt validate changes files and therefore removes it: validate first, then sign. To create a pair of keys:

    openssl ecparam -name prime256v1 -genkey -noout -out release.key

    openssl ec -in release.key -pubout -out release.pub
    """
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.bundle.integrity.signatures import sign_bundle
    from cpt_deploy.workflows import bundle_at

    bundle = bundle_at(bundle)
    opened = Bundle.open(bundle)
    signature = sign_bundle(opened, key)
    files = len(opened.digests) + 1
    out.line(f"signed {files} files of {readable.path(bundle)}: {readable.path(signature)}")
    if opened.validation is None:
        out.note("the bundle has no evidence; run cpt validate before signing to include it in the signature")
    out.result({"bundle": bundle, "signature": signature, "files": files, "content_sha256": opened.content_sha256})
    out.hint(f"cpt verify {readable.argument(bundle)} --key PUBLIC_KEY")


COMMAND = Command(sign, "cpt sign my-bundle --key release.key")
