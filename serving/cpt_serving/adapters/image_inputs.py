"""Convert the content of requests to inputs of an image model: from normalised inputs, pixels or image files.

The header of a file tells how much memory decoding takes and how many pixels result: both are compared with the limits
before anything is decoded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.bundle.processors.images import decoding_bytes, is_decoded_in_python, open_image, pixels_of
from cpt_deploy.errors import ImageError, ImageTooLargeError
from cpt_deploy.signature import INPUT_NAME
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.threads import Work
from cpt_serving.oip.datatypes import BYTES, from_binary
from cpt_serving.oip.schemas import InferInput
from cpt_serving.oip.tensors import json_array
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import RequestError, bad_request, image_error_status
from cpt_serving.web.shown import shown
from cpt_serving.web.uploads import EncodedImage, NormalizedInput, Pixels, Upload, check_rows, decode_base64

Rows = npt.NDArray[Any]

_UNYIELDING = {"JPEG2000": 1 << 21}
"""Maximum pixels of formats whose decoder blocks all other threads; this many take about 0.1 s."""


_IN_PYTHON = 1 << 17
"""Maximum pixels, and bytes of the file, of what Pillow decodes in Python; this many take about 0.1 s."""

_OPENING_BYTES, _OPENING_COPIES = 32 << 20, 4
"""Memory for parsing the header of a file: for decompressed profiles and texts, and as a multiple of the file."""


class ImageReader:
    """Converts contents of requests to rows. All but light work belongs into a thread.

    Args:
        processor: Processor of the bundle.
        settings: Settings with the limits.
        memory: Memory for decoding.
    """

    def __init__(self, processor: ImageProcessor, settings: ServeSettings, memory: MemoryBudget) -> None:
        self._processor, self._preprocessing = processor, processor.preprocessing
        self._settings = settings
        self._memory = memory

    def read_tensor(self, tensor: InferInput, work: Work) -> Rows:
        """Return the rows of a tensor of images, as the model takes them.

        UINT8 are pixels 0..255, (N, H, W, C) or (N, H, W), of any size; BYTES are image files, (N) or (N, 1), in JSON
        as base64.

        Raises:
            RequestError: 400 with the expectation, or 413 for more rows or pixels than the settings allow.
            AbandonedError: If nobody waits for the rows any more.
        """
        if tensor.datatype == "UINT8":
            return self.read(_pixels(tensor, self._settings.max_rows), work)
        if tensor.datatype == BYTES:
            return self.read(_files(tensor, self._settings.max_rows), work)
        raise bad_request(
            f"Expected {INPUT_NAME!r} as FP32, FP64 or FP16 (normalised), UINT8 (pixels) or BYTES (image files), "
            f"but got the datatype {shown(tensor.datatype)}"
        )

    def read(self, uploads: Sequence[Upload], work: Work) -> Rows:
        """Return the rows of uploads, as the model takes them, in order.

        Raises:
            RequestError: 400 or 413; the message names the upload.
            AbandonedError: If nobody waits for the rows any more.
        """
        preprocessing, left = self._preprocessing, self._settings.max_request_pixels
        rows = np.empty((len(uploads), *self._processor.row_shape), self._processor.input.dtype)
        for index, upload in enumerate(uploads):
            work.check()
            try:
                if isinstance(upload, NormalizedInput):
                    rows[index] = _one_normalised(upload, self._processor)
                elif isinstance(upload, EncodedImage):
                    rows[index], left = self._decode(upload.data, left, work)
                else:
                    if upload.values.ndim >= 2:
                        left -= preprocessing.scaled_pixels(upload.values.shape[1], upload.values.shape[0])
                    _require_pixels(left, self._settings)
                    rows[index] = self._processor.row(upload.values)
            except ImageError as error:
                raise RequestError(image_error_status(error), f"{error.message}, in {upload.name}") from error
            except ValueError as error:
                raise bad_request(f"{error}, in {upload.name} (arrays of integers only are taken as pixels)") from error
        return rows

    def _decode(self, data: bytes, left: int, work: Work) -> tuple[Rows, int]:
        """Return a row, and the number of pixels left for the rest of the request."""
        with self._memory.holding(min(_OPENING_BYTES + _OPENING_COPIES * len(data), self._memory.limit), work):
            image = open_image(data, max_pixels=self._settings.max_pixels)
        with image:
            left -= image.width * image.height + self._preprocessing.scaled_pixels(*image.size)
            _require_pixels(left, self._settings)
            size = decoding_bytes(image)
            _require_affordable(image, len(data), size, self._memory.limit)
            with self._memory.holding(size, work):
                try:
                    return self._processor.row(pixels_of(image)), left
                finally:
                    image.close()  # its memory must be free before others may take as much


def _pixels(tensor: InferInput, max_rows: int) -> list[Upload]:
    shape = tensor.shape
    if len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] not in {1, 3}) or 0 in shape:
        raise _wrong_shape(tensor, "[N, height, width] or [N, height, width, 1 or 3]")
    check_rows(shape[0], max_rows)
    if tensor.raw is not None:
        values = from_binary(tensor.name, tensor.datatype, shape, tensor.raw)
    else:
        values = json_array(tensor)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
            raise bad_request(
                f"Expected the pixels of {INPUT_NAME!r} to be integers 0..255, but got {values.min()}..{values.max()}"
            )
        values = values.astype(np.uint8)
    return [Pixels(_row_name(index, shape[0]), image) for index, image in enumerate(values)]


def _files(tensor: InferInput, max_rows: int) -> list[Upload]:
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


def _flat(data: object) -> list[object]:
    if not isinstance(data, list):
        raise bad_request(f"Expected data to be a list of base64 texts, but got {shown(data)}")
    return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]


def _wrong_shape(tensor: InferInput, expected: str) -> RequestError:
    return bad_request(
        f"Expected {INPUT_NAME!r} of datatype {tensor.datatype} to have the shape {expected}, "
        f"but got {shown(tensor.shape)}"
    )


def _row_name(index: int, count: int) -> str:
    return f"row {index + 1} of {count}"


def _one_normalised(upload: NormalizedInput, processor: ImageProcessor) -> Rows:
    preprocessing = processor.preprocessing
    if processor.pixels is not None:
        raise bad_request(f"Expected pixels 0..255, which the model normalises itself, but got {upload.name} as floats")
    if upload.values.shape != preprocessing.input_shape:
        raise bad_request(
            f"Expected a normalised array of shape (C, H, W) = {preprocessing.input_shape}, "
            f"but got {upload.values.shape}, in {upload.name} (pixels are integers 0..255 in the order (H, W, C))"
        )
    return upload.values


def _require_pixels(left: int, settings: ServeSettings) -> None:
    if left < 0:
        raise ImageTooLargeError(
            f"Expected images of which at most {settings.max_request_pixels} pixels are made, decoded and scaled, "
            "but got more"
        )


def _require_affordable(image: ImageFile.ImageFile, file_bytes: int, decoding: int, limit: int) -> None:
    size = f"{image.format} {image.mode} of {image.width} x {image.height}"
    pixels = image.width * image.height
    if decoding > limit:
        raise ImageTooLargeError(
            f"Expected an image that is decoded in at most {limit} bytes, but {size} takes {decoding}"
        )
    most = _UNYIELDING.get(image.format or "", pixels)
    if pixels > most:
        raise ImageTooLargeError(f"Expected {image.format} of at most {most} pixels, but got {size}")
    if is_decoded_in_python(image) and max(pixels, file_bytes) > _IN_PYTHON:
        raise ImageTooLargeError(
            f"Expected at most {_IN_PYTHON} pixels and bytes in this kind of {image.format}, which is slow to decode, "
            f"but got {size} in {file_bytes} bytes"
        )
