"""The repository extension: what its requests ask for."""

from typing import Any

from cpt_serving.oip.requests import typed
from cpt_serving.web.errors import bad_request
from cpt_serving.web.shown import shown

_OVERRIDES = ("config", "file:")


def parse_index(content: dict[str, Any]) -> bool:
    """Return whether only models that are ready are asked for.

    Raises:
        RequestError: 400, if the question is another one.
    """
    return typed("ready", content.get("ready", False), bool, "true or false")


def parse_change(content: dict[str, Any]) -> str | None:
    """Return which version a client wants to load or unload; `None` stands for all of them.

    Raises:
        RequestError: 400, if it wants something else, or brings a model of its own.
    """
    return changed_version(typed("parameters", content.get("parameters") or {}, dict, "an object"))


def changed_version(parameters: dict[str, Any]) -> str | None:
    """Return the version that the parameters of a change name.

    Raises:
        RequestError: 400, if they bring a configuration or files: a bundle's are covered by its checksums.
    """
    overrides = [name for name in parameters if name.startswith(_OVERRIDES)]
    if overrides:
        raise bad_request(f"Expected a model of the repository as it is there, but got {shown(overrides)}")
    version = parameters.get("version")
    return None if version is None else typed("version", version, str, "text")
