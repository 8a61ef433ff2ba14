"""The repository extension: what its requests ask for."""

from typing import Any

from cpt_serving.oip.requests import typed
from cpt_serving.web.errors import bad_request
from cpt_serving.web.json_bodies import parse_object

_OVERRIDES = ("config", "file:")


def parse_index(body: bytes) -> bool:
    """Return whether only models that are ready are asked for.

    Raises:
        RequestError: 400, if the body is neither empty nor such a question.
    """
    return typed("ready", _parse(body).get("ready", False), bool, "true or false")


def parse_change(body: bytes) -> str | None:
    """Return which version a client wants to load or unload; `None` stands for all of them.

    Raises:
        RequestError: 400, if the body is neither empty nor such a wish, or brings a model of its own.
    """
    return changed_version(typed("parameters", _parse(body).get("parameters") or {}, dict, "an object"))


def changed_version(parameters: dict[str, Any]) -> str | None:
    """Return the version that the parameters of a change name.

    Raises:
        RequestError: 400, if they bring a configuration or files: a bundle's are covered by its checksums.
    """
    overrides = [name for name in parameters if name.startswith(_OVERRIDES)]
    if overrides:
        raise bad_request(f"Expected a model of the repository as it is there, but got {overrides!r:.100}")
    version = parameters.get("version")
    return None if version is None else typed("version", version, str, "text")


def _parse(body: bytes) -> dict[str, Any]:
    return parse_object(body) if body.strip() else {}
