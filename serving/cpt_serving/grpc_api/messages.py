"""Messages of the protocol's gRPC form: from requests to what the rest of the server understands, and answers back.

The messages themselves are those that Triton's client is generated with, the protocol's own with every extension.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime import OUTPUT_NAME
from cpt_serving.oip.answers import output_tensor
from cpt_serving.oip.datatypes import BYTES, DTYPES, to_binary
from cpt_serving.oip.inputs import NATIVE
from cpt_serving.oip.requests import InferRequest, InputTensor, check_tensor, parse_output, parse_timeout
from cpt_serving.web.errors import bad_request

_CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents", "UINT8": "uint_contents", BYTES: "bytes_contents"}
"""Where the elements of a tensor stand that did not come as bytes."""


def parse_message(message: Any) -> InferRequest:
    """Return a request for inference; its tensor's bytes are a view of the message's.

    Args:
        message: A `ModelInferRequest`.

    Raises:
        RequestError: 400 with what was expected.
    """
    names = [tensor.name for tensor in message.inputs]
    shape = list(message.inputs[0].shape) if names else []
    check_tensor(names, shape)
    datatype = message.inputs[0].datatype
    outputs = [{"name": each.name, "parameters": plain(each.parameters)} for each in message.outputs]
    return InferRequest(
        tensor=InputTensor(names[0], datatype, shape, raw=_elements(message, datatype)),
        # Bytes are answered with bytes.
        output=parse_output(outputs, binary=bool(message.raw_input_contents)),
        id=message.id or None,
        timeout_us=parse_timeout(plain(message.parameters).get("timeout")),
    )


def infer_message(request: InferRequest, bundle: Bundle, logits: npt.NDArray[np.float32]) -> Any:
    """Return the `ModelInferResponse` to a request; its id comes back if it has one."""
    output = output_tensor(logits, request.output, bundle.labels)
    message = service_pb2.ModelInferResponse(model_name=bundle.name, model_version=bundle.version, id=request.id or "")
    tensor = message.outputs.add(name=OUTPUT_NAME, datatype=output.datatype, shape=output.values.shape)
    if request.output.binary:
        message.raw_output_contents.append(to_binary(output.datatype, output.values))
    elif output.datatype == BYTES:
        tensor.contents.bytes_contents.extend(output.values.ravel().tolist())
    else:
        tensor.contents.fp32_contents.extend(output.values.ravel().tolist())
    return message


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, each of which is one of several types, as plain values."""
    return {
        name: getattr(value, kind)
        for name, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _elements(message: Any, datatype: str) -> memoryview:
    contents = message.inputs[0].contents
    given = [field.name for field, _ in contents.ListFields()]
    if message.raw_input_contents:
        if given or len(message.raw_input_contents) != 1:
            raise bad_request(
                f"Expected one tensor in raw_input_contents or in contents, but got "
                f"{len(message.raw_input_contents)} in the one and {given or 'none'} in the other"
            )
        return memoryview(message.raw_input_contents[0])
    field = _CONTENTS.get(datatype)
    if field is None:
        raise bad_request(
            f"Expected contents of the datatypes {', '.join(_CONTENTS)}, or {NATIVE}, FP64, FP16, BF16, UINT8 or BYTES "
            f"in raw_input_contents, but got {datatype!r:.100}"
        )
    if given not in ([], [field]):
        raise bad_request(f"Expected the elements of {datatype} in {field}, but got {given}")
    elements = getattr(contents, field)
    if datatype == BYTES:
        return memoryview(to_binary(BYTES, np.array([*elements, None], object)[:-1]))
    values = np.array(elements, np.uint32 if datatype == "UINT8" else DTYPES[datatype])
    if datatype == "UINT8" and values.size and values.max() > 255:
        raise bad_request(f"Expected pixels of 0..255, but got {values.max()}")
    return memoryview(to_binary(datatype, values))
