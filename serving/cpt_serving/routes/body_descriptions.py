"""OpenAPI's descriptions of what `/predict` and `infer` take, with examples that work as they stand."""

from typing import Any

from cpt_serving.adapters import Adapter, Predicts
from cpt_serving.oip.requests import HEADER_LENGTH
from cpt_serving.oip.schemas import InferRequest, inline_schema

HEADERS: list[dict[str, Any]] = [
    {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "bytes of JSON at the start of the body; the tensor's bytes follow. 0: the body is the tensor",
        "schema": {"type": "integer", "minimum": 0},
    },
    {
        "name": "Content-Encoding",
        "in": "header",
        "required": False,
        "description": "how the body is compressed",
        "schema": {"enum": ["gzip", "deflate", "identity"]},
    },
]
"""Headers of a request for inference."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}


def infer_body(adapter: Adapter | None) -> dict[str, Any]:
    """Return the body that `infer` takes; without an adapter, and for large inputs, there is no example."""
    content: dict[str, Any] = {"schema": inline_schema(InferRequest)}
    example = None if adapter is None else adapter.infer_example()
    if example is not None:
        content["example"] = example
    return {"required": True, "content": {"application/json": content, "application/octet-stream": _BINARY}}


def predict_body(adapter: Predicts | None) -> dict[str, Any]:
    """Return the bodies that `/predict` takes, with examples if there is a model."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    text = {"type": "string", "description": "base64 of an image file; data URLs are fine"}
    arrays = {
        "type": "array",
        "items": {},
        "description": 'pixels (integers 0..255, H x W x C), normalised inputs (C x H x W) or {"b64": text}',
    }
    json_schema = {
        "type": "object",
        "properties": {
            "image": text,
            "images": {"type": "array", "items": text},
            "instances": arrays,
            "kind": {"enum": ["pixels", "normalized"], "description": "what the arrays of `instances` are"},
        },
    }
    examples = {} if adapter is None else {"examples": adapter.predict_examples()}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": files}}},
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "application/json": {"schema": json_schema, **examples},
        },
    }
