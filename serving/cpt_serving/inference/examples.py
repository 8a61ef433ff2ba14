"""Requests that `/docs` shows, made from the bundle's golden sample so that they work as they stand."""

import base64
from typing import Any

from cpt_deploy.bundle import Bundle
from cpt_serving.samples import sample_image, to_png

_LARGEST_SIDE = 32


def example_image(bundle: Bundle) -> bytes:
    """Return the first golden input as a small PNG file."""
    image = sample_image(bundle, 0)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return to_png(image)


def predict_body(bundle: Bundle | None) -> dict[str, Any]:
    """Return the OpenAPI description of the bodies that `/predict` takes, with examples if there is a bundle."""
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
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": files}}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": json_schema,
                **({} if bundle is None else {"examples": _predict_examples(bundle)}),
            },
        },
    }


def _predict_examples(bundle: Bundle) -> dict[str, Any]:
    encoded = base64.b64encode(example_image(bundle)).decode()
    return {
        "one image": {"value": {"image": encoded}},
        "several images": {"value": {"images": [encoded, encoded]}},
        "pixels": {"value": {"instances": [[[0, 128], [255, 64]]]}},
    }
