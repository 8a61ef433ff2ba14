"""Convert messages of the protocol's gRPC form to the server's requests, and outputs to messages.

The message classes are those of Triton's client: the protocol's own with every extension.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from cpt_deploy.bundle import Bundle
from cpt_serving.oip.answers import OutputTensor
from cpt_serving.oip.datatypes import BYTES, DTYPES, FP16, to_binary, to_integers
from cpt_serving.oip.schemas import InferRequest
from cpt_serving.web.errors import bad_request
from cpt_serving.web.json_bodies import checked
from cpt_serving.web.shown import shown

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Fields with the elements of tensors that are not sent as bytes; tensors of other datatypes must be sent as bytes."""


def parse_message(message: Any) -> InferRequest:
    """Convert a message to a request for inference; the bytes of its tensors are views of the message's.

    Args:
        message: A `ModelInferRequest`.

    Raises:
        RequestError: 400 with the expectation.
    """
    # Requests with bytes are answered with bytes, and so are those without inputs.
    binary = bool(message.raw_input_contents) or not message.inputs
    parameters = plain(message.parameters) | {"binary_data_output": binary}
    request = checked(
        InferRequest,
        {
            "id": message.id or None,
            "inputs": [_described(each) for each in message.inputs],
            "outputs": [_described(each) for each in message.outputs],
            "parameters": parameters,
        },
    )
    if len({output.as_bytes(request.binary) for output in request.outputs or ()}) > 1:
        raise bad_request("Expected binary_data to be the same of all outputs, as gRPC has it, but got both")
    for tensor, raw in zip(request.inputs, _elements_of(message), strict=True):
        tensor.attach(raw)
    return request


def infer_message(bundle: Bundle, identity: str | None, outputs: Sequence[OutputTensor]) -> Any:
    """Return the `ModelInferResponse` to a request.

    Args:
        bundle: Bundle of the model that computed the outputs.
        identity: Id of the request, which is returned if there is one.
        outputs: Outputs that the client requested.
    """
    message = service_pb2.ModelInferResponse(model_name=bundle.name, model_version=bundle.version, id=identity or "")
    # The message has either bytes of all outputs or typed elements of all, and no field for elements of FP16.
    binary = any(output.binary or output.datatype == FP16 for output in outputs)
    for output in outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.values.shape)
        if binary:
            message.raw_output_contents.append(to_binary(output.datatype, output.values))
        else:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(output.values.ravel().tolist())
    return message


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, each a union of types in the message, as plain values."""
    return {
        name: getattr(value, kind)
        for name, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _elements_of(message: Any) -> list[memoryview]:
    """Return the bytes of the tensors; either all of them were sent as bytes, or none."""
    raw = message.raw_input_contents
    typed = [tensor.name for tensor in message.inputs if tensor.contents.ListFields()]
    if raw and (typed or len(raw) != len(message.inputs)):
        raise bad_request(
            f"Expected the {len(message.inputs)} tensors in raw_input_contents or in contents, but got "
            f"{len(raw)} in the one and {shown(typed or 'none')} in the other"
        )
    return [memoryview(each) for each in raw] or [_elements(tensor) for tensor in message.inputs]


def _described(tensor: Any) -> dict[str, Any]:
    """Return the fields of an input or of a requested output as in JSON."""
    described = {"name": tensor.name, "parameters": plain(tensor.parameters)}
    if hasattr(tensor, "shape"):
        described |= {"shape": list(tensor.shape), "datatype": tensor.datatype}
    return described


def _elements(tensor: Any) -> memoryview:
    """Return the bytes of a tensor whose elements are in its contents."""
    name, datatype = tensor.name, tensor.datatype
    field = _CONTENTS.get(datatype)
    if field is None:
        raise bad_request(
            f"Expected contents of the datatypes {', '.join(_CONTENTS)}, or FP16 in raw_input_contents, "
            f"but got {shown(datatype)}"
        )
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if given not in ([], [field]):
        raise bad_request(f"Expected the elements of {datatype} in {field}, but got {given}")
    elements = getattr(tensor.contents, field)
    if datatype == BYTES:
        return memoryview(to_binary(BYTES, np.array([*elements, None], object)[:-1]))
    dtype = DTYPES[datatype]
    if dtype.kind in "iu" and dtype.itemsize < 8:
        # Smaller integers are sent in fields of 32 bits.
        values = to_integers(name, datatype, np.array(elements, np.int64))
    else:
        values = np.array(elements, dtype)
    return memoryview(to_binary(datatype, values))
