"""From a request's tensor to the rows that the model computes: normalised inputs, pixels, or image files."""

import math

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.bundle.runtime import INPUT_NAME
from cpt_serving.inference.rows import to_rows
from cpt_serving.oip.datatypes import BYTES, from_binary
from cpt_serving.oip.requests import InputTensor
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import shown
from cpt_serving.web.uploads import EncodedImage, Pixels, Upload, check_rows, decode_base64

NATIVE = "FP32"
"""Datatype of the model's own input and output."""

_LIGHT_BYTES = 1 << 20
_FLOATS = frozenset({NATIVE, "FP64", "FP16", "BF16"})
_ONLY_BINARY = frozenset({"FP16", "BF16"})


def is_light(tensor: InputTensor) -> bool:
    """Return whether `tensor_rows` takes no longer than it takes to hand work to a thread.

    Of what stands in JSON that holds only if the JSON is short.
    """
    return tensor.datatype == NATIVE and (tensor.raw is None or tensor.raw.nbytes <= _LIGHT_BYTES)


def tensor_rows(tensor: InputTensor, preprocessing: Preprocessing, settings: ServeSettings) -> npt.NDArray[np.float32]:
    """Return the rows of a tensor, float32 (N, C, H, W); those that came as FP32 bytes are a view of them.

    Floats are normalised inputs, (N, C, H, W); UINT8 are pixels 0..255, (N, H, W, C) or (N, H, W), of any size; BYTES
    are image files, (N) or (N, 1), in JSON as base64. Takes long unless `is_light`: call it in a thread.

    Raises:
        RequestError: 400 with what was expected, or 413 for more rows or pixels than `settings` allow.
    """
    if tensor.datatype in _FLOATS:
        return _normalised(tensor, preprocessing.input_shape, settings.max_rows)
    if tensor.datatype == "UINT8":
        return to_rows(_pixels(tensor, settings.max_rows), preprocessing, settings)
    if tensor.datatype == BYTES:
        return to_rows(_files(tensor, settings.max_rows), preprocessing, settings)
    raise bad_request(
        f"Expected {INPUT_NAME!r} as FP32, FP64, FP16 or BF16 (normalised), UINT8 (pixels) or BYTES (image files), "
        f"but got the datatype {shown(tensor.datatype)}"
    )


def raw_tensor(body: bytes, preprocessing: Preprocessing) -> InputTensor:
    """Return the tensor of a raw request: FP32 and nothing else; how many rows follows from the size.

    Raises:
        RequestError: 400, if the body is no multiple of a row.
    """
    row_bytes = 4 * math.prod(preprocessing.input_shape)
    count, rest = divmod(len(body), row_bytes)
    if rest or not count:
        raise bad_request(
            f"Expected a body of {row_bytes} bytes for each row of FP32 {list(preprocessing.input_shape)}, "
            f"but got {len(body)}"
        )
    return InputTensor(INPUT_NAME, NATIVE, [count, *preprocessing.input_shape], raw=memoryview(body))


def _normalised(tensor: InputTensor, expected: tuple[int, int, int], max_rows: int) -> npt.NDArray[np.float32]:
    if len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != expected or tensor.shape[0] < 1:
        raise _wrong_shape(tensor, f"[N, {', '.join(map(str, expected))}]")
    check_rows(tensor.shape[0], max_rows)
    if tensor.raw is None:
        if tensor.datatype in _ONLY_BINARY:
            raise bad_request(f"Expected FP32 or FP64 in JSON, but got {tensor.datatype}, which comes only as bytes")
        return _json_array(tensor).astype(np.float32)
    values = from_binary(tensor.name, tensor.datatype, tensor.shape, tensor.raw)
    if tensor.datatype == NATIVE:
        # A copy only if the JSON's length leaves the bytes where no float may stand.
        rows = values if values.flags.aligned else values.copy()
    else:
        with np.errstate(over="ignore"):
            rows = np.require(values, np.float32, ["C_CONTIGUOUS", "ALIGNED"])
    if not np.isfinite(rows).all():
        raise bad_request(f"Expected {INPUT_NAME!r} to hold finite numbers of float32's range, but got others")
    return rows


def _pixels(tensor: InputTensor, max_rows: int) -> list[Upload]:
    shape = tensor.shape
    if len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] not in {1, 3}) or 0 in shape:
        raise _wrong_shape(tensor, "[N, height, width] or [N, height, width, 1 or 3]")
    check_rows(shape[0], max_rows)
    if tensor.raw is not None:
        values = from_binary(tensor.name, tensor.datatype, shape, tensor.raw)
    else:
        values = _json_array(tensor)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
            raise bad_request(
                f"Expected the pixels of {INPUT_NAME!r} to be integers 0..255, but got {values.min()}..{values.max()}"
            )
        values = values.astype(np.uint8)
    return [Pixels(_row_name(index, shape[0]), image) for index, image in enumerate(values)]


def _files(tensor: InputTensor, max_rows: int) -> list[Upload]:
    shape = tensor.shape
    if len(shape) not in {1, 2} or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise _wrong_shape(tensor, "[N] or [N, 1]")
    count = shape[0]
    check_rows(count, max_rows)
    names = [_row_name(index, count) for index in range(count)]
    if tensor.raw is not None:
        files = from_binary(tensor.name, BYTES, shape, tensor.raw).ravel().tolist()
    else:
        texts = _flat(tensor.data)
        if len(texts) != count:
            raise bad_request(f"Expected {count} base64 texts in data, but got {len(texts)}")
        files = [decode_base64(name, text) for name, text in zip(names, texts, strict=True)]
    return [EncodedImage(name, file) for name, file in zip(names, files, strict=True)]


def _json_array(tensor: InputTensor) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    array = to_numbers("data", tensor.data)
    if array.size != math.prod(tensor.shape) or (array.ndim > 1 and list(array.shape) != tensor.shape):
        raise bad_request(f"Expected data of the shape {tensor.shape}, flat or nested, but got {list(array.shape)}")
    return array.reshape(tensor.shape)


def _flat(data: object) -> list[object]:
    if not isinstance(data, list):
        raise bad_request(f"Expected data to be a list of base64 texts, but got {shown(data)}")
    return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]


def _wrong_shape(tensor: InputTensor, expected: str) -> RequestError:
    return bad_request(
        f"Expected {INPUT_NAME!r} of datatype {tensor.datatype} to have the shape {expected}, "
        f"but got {shown(tensor.shape)}"
    )


def _row_name(index: int, count: int) -> str:
    return f"row {index + 1} of {count}"
