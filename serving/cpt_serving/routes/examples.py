"""OpenAPI descriptions of requests; the examples work unchanged and reveal nothing of a bundle's content."""

from typing import Any

from cpt_serving.adapters import Adapter
from cpt_serving.adapters.description import infer_example
from cpt_serving.oip.requests import HEADER_LENGTH
from cpt_serving.oip.schemas import InferRequest, inline_schema
from cpt_serving.service import Service

HEADERS: list[dict[str, Any]] = [
    {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "bytes of JSON at the start of the body; the tensor's bytes follow",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "required": False,
        "description": "compression of the body",
        "schema": {"enum": ["gzip", "deflate", "identity"]},
    },
]
"""OpenAPI descriptions of the headers of a request for inference."""


def infer_body(service: Service) -> dict[str, Any]:
    """Return the OpenAPI description of the body that `infer` takes.

    It includes an example only if reading the model's metadata needs no key.
    """
    content: dict[str, Any] = {"schema": inline_schema(InferRequest)}
    adapter = _shown(service)
    example = None if adapter is None else infer_example(adapter.signature)
    if example is not None:
        content["example"] = example
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": {"application/json": content, "application/octet-stream": binary}}


def predict_body(service: Service) -> dict[str, Any]:
    """Return the OpenAPI description of the bodies that `/predict` takes, with examples as in `infer_body`."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    text = {"type": "string", "description": "base64 of an image file; data URLs are fine"}
    rows = {
        "items": {},
        "description": "rows by the names of inputs; or rows of the only input: tensors; pixels (integers 0..255, "
        'H x W x C), normalised inputs (C x H x W) or {"b64": text}',
    }
    json_schema = {
        "type": "object",
        "properties": {
            "inputs": {"description": "by the name of each input, the list of its rows"},
            "instances": {"type": "array", **rows},
            "image": text,
            "images": {"type": "array", "items": text},
            "kind": {"enum": ["pixels", "normalized"], "description": "meaning of the arrays in `instances`"},
        },
    }
    adapter = _shown(service)
    examples = {} if adapter is None else {name: {"value": value} for name, value in adapter.examples().items()}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": json_schema, "examples": examples},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": files}}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }


def _shown(service: Service) -> Adapter | None:
    """Return the adapter whose examples are shown: none if reading a model's metadata needs a key."""
    return None if service.settings.api_keys is not None else service.repository.models.first
