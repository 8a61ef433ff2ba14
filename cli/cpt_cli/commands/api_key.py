"""`cpt api-key`: create a key for a server, show it once, and store its hash."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable


def api_key(
    name: Annotated[str, typer.Argument(help="Name of the key's owner, for the access log.")],
    file: Annotated[Path, typer.Argument(help="File for cpt serve --api-keys; created if it does not exist.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="infer|metrics|admin", help="Permission of the key; can be repeated.", show_default="infer"
        ),
    ] = None,
) -> None:
    """Create an API key and append its SHA-256 to a file. The key itself is shown only once.

    A running server reads the file again when it changes; deleting a line of the file revokes its key.
    """
    from cpt_serving.access.api_keys import add_key

    scopes = scope or ["infer"]
    key = add_key(file, name, scopes)
    out.line(key)
    out.note(f"the key of {name} for {', '.join(scopes)}; {readable.path(file)} has only its hash")
    out.result({"key": key, "name": name, "scopes": scopes, "file": file})
    out.hint(f"cpt serve BUNDLE --api-keys {readable.path(file)}")


COMMAND = Command(
    api_key,
    "cpt api-key shop keys.txt",
    "cpt api-key prometheus keys.txt --scope metrics",
    "cpt api-key release keys.txt --scope infer --scope admin",
)
