"""`cpt api-key`: make a key for a server, show it once, and store its hash."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy import readable


def api_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; the access log names it.")],
    file: Annotated[Path, typer.Argument(help="File that cpt serve --api-keys reads; made if it is not there.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="infer|metrics|admin", help="What the key is good for; can be repeated.", show_default="infer"
        ),
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Make an API key and append its SHA-256 to a file. The key itself is shown now and never again.

    A running server reads the file again when it changes; without its line, a key is worth nothing.
    """
    from cpt_serving.access.api_keys import add_key

    scopes = scope or ["infer"]
    key = add_key(file, name, scopes)
    out.line(key)
    out.note(f"the key of {name} for {', '.join(scopes)}; {readable.path(file)} holds its hash only")
    out.result({"key": key, "name": name, "scopes": scopes, "file": file})
    out.hint(f"cpt serve BUNDLE --api-keys {readable.path(file)}")


COMMAND = Command(
    name="api-key",
    function=api_key,
    panel=SHIP_PANEL,
    examples=(
        "cpt api-key shop keys.txt",
        "cpt api-key prometheus keys.txt --scope metrics",
        "cpt api-key release keys.txt --scope infer --scope admin",
    ),
)
