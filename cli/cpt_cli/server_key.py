"""The option for the API key of commands that send requests to a server."""

from typing import Annotated

import typer

from cpt_deploy.errors import UsageError

ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="CPT_API_KEY",
        help="API key for the server; the variable keeps it out of lists of processes.",
    ),
]


def key_headers(api_key: str | None) -> dict[str, str]:
    """Return the headers with an API key.

    Raises:
        UsageError: If the text cannot be a key.
    """
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise UsageError("Expected the API key to be printable ASCII without spaces, but got something else")
    return {"X-API-Key": api_key}
