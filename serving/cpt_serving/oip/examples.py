"""What `/docs` shows of a request for inference, made from a bundle's golden sample so that it works as it stands."""

from typing import Any

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime import INPUT_NAME
from cpt_serving.oip.inputs import NATIVE
from cpt_serving.oip.requests import HEADER_LENGTH
from cpt_serving.oip.schemas import InferRequest, inline_schema

_LARGEST_INPUT = 1024

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
"""OpenAPI's descriptions of the headers of a request for inference."""


def infer_body(bundle: Bundle | None) -> dict[str, Any]:
    """Return the OpenAPI description of the body that `infer` takes; the example of a large input is left out."""
    content: dict[str, Any] = {"schema": inline_schema(InferRequest)}
    if bundle is not None and bundle.golden.inputs[0].size <= _LARGEST_INPUT:
        row = bundle.golden.inputs[0]
        data = [round(float(value), 4) for value in row.ravel()]
        tensor = {"name": INPUT_NAME, "shape": [1, *row.shape], "datatype": NATIVE, "data": data}
        content["example"] = {"id": "1", "inputs": [tensor]}
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": {"application/json": content, "application/octet-stream": binary}}
