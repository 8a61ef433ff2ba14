"""`cpt verify`: check the signature of a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle signed by cpt sign.")],
    key: Annotated[Path, typer.Option(help="Public key in PEM, or a folder of keys, one of which has to match.")],
) -> None:
    """Check that a bundle is unchanged since it was signed: no file changed, added or removed. If not, exit code 4.

    cpt serve --require-signature does the same whenever it loads a bundle.
    """
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.bundle.integrity.signatures import public_keys, require_signature
    from cpt_deploy.errors import BundleError, ValidationFailedError
    from cpt_deploy.workflows import bundle_at

    keys = public_keys(key)
    bundle = bundle_at(bundle)
    try:
        opened = Bundle.open(bundle)
    except BundleError as error:  # a file is not as its checksum says, or is gone
        raise ValidationFailedError(error.message, hint=error.hint) from error
    fitting = require_signature(opened, keys)
    out.line(f"{readable.path(bundle)} is as it was signed with the key of {readable.path(fitting)}")
    out.result({"bundle": bundle, "key": fitting, "content_sha256": opened.content_sha256})
    out.hint(f"cpt serve {readable.argument(bundle)} --require-signature {readable.argument(key)}")


COMMAND = Command(
    verify,
    "cpt verify my-bundle --key release.pub",
    "cpt verify my-bundle --key trusted-keys/  # each .pub or .pem in it",
)
