"""The Open Inference Protocol, version 2, apart from HTTP: requests to rows, logits to answers, metadata."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime import INPUT_NAME, OUTPUT_NAME
from cpt_serving.errors import RequestError, bad_request
from cpt_serving.schemas import InferRequest, InferTensor
from cpt_serving.uploads import check_rows, parse_object, to_numbers

DATATYPE = "FP32"
PLATFORM = "onnx_onnxv1"


def model_metadata(bundle: Bundle) -> dict[str, Any]:
    """Return what a model takes and returns, in the protocol's form."""
    return {
        "name": bundle.name,
        "versions": [bundle.version],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT_NAME, "datatype": DATATYPE, "shape": [-1, *bundle.preprocessing.input_shape]}],
        "outputs": [{"name": OUTPUT_NAME, "datatype": DATATYPE, "shape": [-1, len(bundle.labels)]}],
    }


def parse_infer_request(body: bytes, bundle: Bundle, *, max_rows: int) -> tuple[InferRequest, npt.NDArray[np.float32]]:
    """Return a request and its rows, float32 (N, C, H, W). Takes long for large bodies: call it in a thread.

    Raises:
        RequestError: 400 with what was expected, or 413 if there are more than `max_rows` rows.
    """
    try:
        request = InferRequest.model_validate(parse_object(body))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5]
        )
        raise bad_request(f"Expected a request of the Open Inference Protocol, but got: {problems}") from error
    for output in request.outputs or []:
        if output.name != OUTPUT_NAME:
            raise bad_request(f"Expected the output {OUTPUT_NAME!r}, but got {output.name!r:.100}")
    names = [tensor.name for tensor in request.inputs]
    if names != [INPUT_NAME]:
        raise bad_request(f"Expected exactly the input {INPUT_NAME!r}, but got {names!r:.200}")
    return request, _rows(request.inputs[0], bundle, max_rows)


def infer_answer(request: InferRequest, bundle: Bundle, logits: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the answer to a request; its id comes back if it has one."""
    answer: dict[str, Any] = {"model_name": bundle.name, "model_version": bundle.version}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = [
        {"name": OUTPUT_NAME, "datatype": DATATYPE, "shape": list(logits.shape), "data": logits.reshape(-1)}
    ]
    return answer


def refuse_binary(headers: Mapping[str, str]) -> None:
    """Raise a 400 if a request's tensors follow its JSON as bytes.

    Raises:
        RequestError: With what to send instead.
    """
    if "inference-header-content-length" in headers:
        raise bad_request("Expected tensors in JSON, but got binary ones (with tritonclient: binary_data=False)")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "Expected a body without Content-Encoding, but got a compressed one")


def _rows(tensor: InferTensor, bundle: Bundle, max_rows: int) -> npt.NDArray[np.float32]:
    if tensor.datatype != DATATYPE:
        raise bad_request(f"Expected {INPUT_NAME!r} to have the datatype {DATATYPE}, but got {tensor.datatype!r:.100}")
    expected = bundle.preprocessing.input_shape
    if len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != expected or tensor.shape[0] < 1:
        raise bad_request(
            f"Expected {INPUT_NAME!r} to have the shape [N, {', '.join(map(str, expected))}], "
            f"but got {tensor.shape!r:.100}"
        )
    check_rows(tensor.shape[0], max_rows)
    array = to_numbers("data", tensor.data)
    if array.size != np.prod(tensor.shape) or (array.ndim > 1 and list(array.shape) != tensor.shape):
        raise bad_request(f"Expected data of the shape {tensor.shape}, flat or nested, but got {list(array.shape)}")
    return array.reshape(tensor.shape).astype(np.float32)
