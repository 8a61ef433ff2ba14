"""The request that a load test sends again and again, written out once as the bytes that go over the wire."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import numpy as np
import numpy.typing as npt
import orjson
from PIL import Image

from cpt_deploy.errors import UsageError
from cpt_serving.client import ModelMetadata
from cpt_serving.client.addresses import normalize_address
from cpt_serving.client.calls import infer_call, predict_call
from cpt_serving.client.tensors import DATATYPES

Encoding = Literal["binary", "json"]


@dataclass(frozen=True)
class PreparedRequest:
    """One HTTP/1.1 request.

    Args:
        url: Where it goes.
        content: Its head and body.
        rows: How many images or rows it asks for.
        description: What it is, for people.
    """

    url: httpx2.URL
    content: bytes
    rows: int
    description: str

    @property
    def port(self) -> int:
        """The server's port."""
        return self.url.port or (443 if self.url.scheme == "https" else 80)


def prepare_predict(
    address: str, images: Sequence[bytes], *, model: str | None = None, headers: Mapping[str, str] | None = None
) -> PreparedRequest:
    """Return a request to `/predict` with image files.

    Args:
        address: The server's address.
        images: The files' content.
        model: Which model, where several are served.
        headers: Further headers.
    """
    call = predict_call(images, top_k=1, model=model)
    return _written(address, call.method, call.path, dict(call.body), headers, len(images), "image files to /predict")


def prepare_infer(
    address: str,
    metadata: ModelMetadata,
    rows: npt.NDArray[Any],
    *,
    version: str | None = None,
    encoding: Encoding = "binary",
    headers: Mapping[str, str] | None = None,
) -> PreparedRequest:
    """Return a request of the Open Inference Protocol.

    Args:
        address: The server's address.
        metadata: The model's.
        rows: Its input.
        version: Which version; by default the newest.
        encoding: Whether tensors are bytes or JSON.
        headers: Further headers.
    """
    call = infer_call(metadata, version, rows)
    own, body = dict(call.headers), dict(call.body)
    if encoding == "json":
        tensor = metadata.inputs[0]
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(rows.shape), "data": rows.ravel()}
        body = {"content": orjson.dumps({"inputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)}
        own = {"Content-Type": "application/json"}
    text = f"Open Inference Protocol, {'tensors as bytes' if encoding == 'binary' else 'tensors in JSON'}"
    return _written(address, call.method, call.path, body, {**own, **(headers or {})}, len(rows), text)


def random_rows(metadata: ModelMetadata, rows: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    """Return random input for a model: normally distributed where it takes fractions, else any of its integers.

    Raises:
        UsageError: If the model has not exactly one input of numbers, or only its batch may be of any size.
    """
    tensor = metadata.inputs[0]
    dtype = DATATYPES.get(tensor.datatype)
    if len(metadata.inputs) != 1 or dtype is None or not tensor.shape or min(tensor.shape[1:], default=1) < 1:
        described = ", ".join(f"{each.datatype} {list(each.shape)}" for each in metadata.inputs)
        raise UsageError(f"Expected a model with one input of numbers and a known shape, but got {described}")
    shape = (rows, *tensor.shape[1:])
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    largest = 1 if dtype.kind == "b" else min(int(np.iinfo(dtype).max), 255)
    return generator.integers(0, largest, shape, endpoint=True).astype(dtype)


def random_image(metadata: ModelMetadata, generator: np.random.Generator) -> bytes:
    """Return noise of the model's input size as a PNG file.

    Raises:
        UsageError: If its input is not (N, C, H, W) with one or three channels.
    """
    shape = metadata.inputs[0].shape
    if len(shape) != 4 or shape[1] not in {1, 3}:
        raise UsageError(f"Expected a model of grey or colour images, but its input is {list(shape)}")
    pixels = generator.integers(0, 255, (shape[2], shape[3], shape[1]), np.uint8, endpoint=True)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if shape[1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _written(
    address: str,
    method: str,
    path: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str] | None,
    rows: int,
    description: str,
) -> PreparedRequest:
    """Let httpx2 encode the request, and write it out."""
    url = normalize_address(address)
    agent = {"User-Agent": "cpt-load-test", "Accept-Encoding": "identity"}
    with httpx2.Client(base_url=url) as client:
        request = client.build_request(method, path, headers={**agent, **(headers or {})}, **body)
    content = request.read()
    lines = [f"{method} {request.url.raw_path.decode()} HTTP/1.1".encode()]
    lines += [name + b": " + value for name, value in request.headers.raw]
    return PreparedRequest(url, b"\r\n".join([*lines, b"", content]), rows, description)
