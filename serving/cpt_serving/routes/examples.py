"""OpenAPI descriptions of requests with images; the examples work unchanged and reveal nothing of a bundle."""

import base64
from typing import Any

from PIL import Image

from cpt_serving.oip.requests import HEADER_LENGTH
from cpt_serving.oip.schemas import InferRequest, inline_schema
from cpt_serving.samples import to_png
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
    adapter = None if service.settings.api_keys is not None else service.repository.models.predicting
    example = None if adapter is None else adapter.infer_example()
    if example is not None:
        content["example"] = example
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": {"application/json": content, "application/octet-stream": binary}}


def predict_body() -> dict[str, Any]:
    """Return the OpenAPI description of the bodies that `/predict` takes."""
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
            "kind": {"enum": ["pixels", "normalized"], "description": "meaning of the arrays in `instances`"},
        },
    }
    image = base64.b64encode(to_png(Image.linear_gradient("L").resize((16, 16)))).decode()
    examples = {
        "one image": {"value": {"image": image}},
        "several images": {"value": {"images": [image, image]}},
        "pixels": {"value": {"instances": [[[0, 128], [255, 64]]]}},
    }
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": files}}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": json_schema, "examples": examples},
        },
    }
