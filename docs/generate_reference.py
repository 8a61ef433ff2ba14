"""Writes the pages of docs/reference that come from the code: recipe fields, server settings, HTTP routes.

`python docs/generate_reference.py --check` only compares.
"""

import ast
import inspect
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from generated import write_or_check
from pydantic import BaseModel
from typer.main import get_command

FOLDER = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by docs/generate_reference.py: change the code, then run `make docs`. -->\n\n"
BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def recipe_fields() -> str:
    """Return the page of the settings of a recipe: each section with its description, types, bounds and defaults."""
    from cpt_deploy.recipe import Recipe

    sections = "\n".join(_section(path, model) for path, model in _sections("", Recipe))
    return f"""{NOTICE}# Recipe fields

A recipe is a YAML file. A setting that it omits has its default; on the command line any setting can be given as
`section.key=value`, such as `train.epochs=20`. An unknown key is an error that names the nearest one.

{sections}"""


def _sections(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _sections(f"{path}.{name}".lstrip("."), part)


def _section(path: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(model.model_fields[name].get_default())} |\n"
        for name, field in schema["properties"].items()
        if not isinstance(model.model_fields[name].get_default(call_default_factory=True), BaseModel)
    ]
    title = f"## `{path}`" if path else "## Top level"
    text = inspect.cleandoc(model.__doc__ or "")
    return f"{title}\n\n{text}\n\n| field | type | default |\n|---|---|---|\n{''.join(rows)}"


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return "mapping"
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        parts = schema.get("prefixItems") or [schema["items"]]
        return "list of " + ", ".join(dict.fromkeys(_kind(part) for part in parts))
    bounds = [text.format(f"{schema[key]:.12g}") for key, text in BOUNDS.items() if key in schema]
    return " ".join(
        [{"object": "mapping", "number": "float"}.get(schema["type"], schema["type"]), ", ".join(bounds)]
    ).strip()


def _default(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{shown}`" if re.search(r"\d|\w", shown) and "Undefined" not in shown else ""


def server_settings() -> str:
    """Return the page of the server's settings: variables, options, defaults."""
    from cpt_cli.commands.serve import serve
    from cpt_serving import settings

    command = typer.Typer()
    command.command()(serve)
    options = {parameter.name: parameter.opts[-1] for parameter in get_command(command).params}
    meanings = _attribute_texts(settings.ServeSettings)
    rows = "".join(
        f"| `{name.upper()}` | {_setting(field.get_default())} | {_option(options.get(name))} | {meanings[name]} |\n"
        for name, field in settings.ServeSettings.model_fields.items()
    )
    return f"""{NOTICE}# Server settings

Options of `cpt serve` come first, then environment variables with the prefix `{settings.ENV_PREFIX}`, then the YAML
file of `--config`, then these defaults. In the file the names are in lower case, and an unknown name is an error:

```yaml
bundle: models/
port: 9000
max_batch: 32
require_evidence: true
watch_s: 5
```

| `{settings.ENV_PREFIX}…` | default | option | meaning |
|---|---|---|---|
{rows}"""


def _attribute_texts(model: type[BaseModel]) -> dict[str, str]:
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(inspect.cleandoc(text.value.value).split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _setting(value: object) -> str:
    shown = _default(value)
    return "" if shown == "null" else shown


def _option(name: str | None) -> str:
    return "" if name is None else f"`{name}`" if name.startswith("-") else "first argument"


def http_routes(description: Mapping[str, Any]) -> str:
    """Return the page of the routes.

    Args:
        description: The OpenAPI document of a server.
    """
    topics: dict[str, dict[tuple[str, str], list[str]]] = {}
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            text = inspect.cleandoc(operation.get("description", operation["summary"])).replace("\n\n", "<br>")
            query = [part["name"] for part in operation.get("parameters", []) if part["in"] == "query"]
            statuses = [status for status in operation["responses"] if status != "200"]
            cells = [
                " ".join(text.split()),
                ", ".join(f"`{name}`" for name in query if name not in {"model", "version"}),
                ", ".join(f"`{kind}`" for kind in operation.get("requestBody", {}).get("content", {})),
                ", ".join(sorted(statuses)),
            ]
            versioned = path.replace("{model}", "{model}/versions/{version}")
            if versioned != path and versioned in description["paths"]:
                continue  # the row of the path with a version says both
            short = path.replace("/versions/{version}", "[/versions/{version}]")
            topics.setdefault(operation["tags"][0], {})[method.upper(), short] = cells
    tables = "\n".join(_routes(topic, routes) for topic, routes in topics.items())
    return f"""{NOTICE}# HTTP routes

Every route of `cpt serve`, as its own OpenAPI document (`/openapi.json`, shown at `/docs`) describes it; the request
and answer bodies are explained in [HTTP API](http-api.md). Without `/versions/{{version}}` the newest version that is
ready answers. Errors are listed by status, beside those of every route (401 and 403 with API keys, 500).

{tables}"""


def _routes(topic: str, routes: Mapping[tuple[str, str], list[str]]) -> str:
    rows = "".join(f"| `{method} {path}` | {' | '.join(cells)} |\n" for (method, path), cells in routes.items())
    return f"## {topic[0].upper()}{topic[1:]}\n\n| route | | query | body | errors |\n|---|---|---|---|---|\n{rows}"


def openapi(bundle: Path) -> Mapping[str, Any]:
    """Return the OpenAPI document of a server of the bundle."""
    from starlette.testclient import TestClient

    from cpt_serving import create_app, load_settings

    with TestClient(create_app(load_settings(bundle=bundle, access_log=False))) as client:
        description: Mapping[str, Any] = client.get("/openapi.json").json()
    return description


def write_small_bundle(folder: Path) -> Path:
    """Write the bundle of a tiny image classifier; the routes are the same for all models."""
    import torch

    import cpt_deploy as cpt

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = cpt.prepare(net, torch.zeros(2, 1, 8, 8), cpt.QuantizationConfig())
    cpt.calibrate(model, [torch.rand(8, 1, 8, 8)])
    preprocessing = cpt.Preprocessing(channels=1, size=(8, 8), mean=(0.5,), std=(0.5,))
    processor = cpt.ImageProcessor(preprocessing, ["a", "b", "c", "d"])
    return cpt.export_bundle(model, folder / "bundle", task="image-classification", processor=processor).path


def main() -> int:
    """Write the pages, or with --check return 1 if one is out of date."""
    with tempfile.TemporaryDirectory() as folder:
        routes = http_routes(openapi(write_small_bundle(Path(folder))))
    pages = {
        "recipe-fields.md": recipe_fields(),
        "server-settings.md": server_settings(),
        "http-routes.md": routes,
    }
    return write_or_check({FOLDER / name: text for name, text in pages.items()})


if __name__ == "__main__":
    sys.exit(main())
