"""From uploads to the rows that the model computes: decoding and preprocessing as in training's evaluation."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Preprocessing, decode_image
from cpt_deploy.errors import ImageError
from cpt_serving.settings import ServeSettings
from cpt_serving.web.errors import RequestError, bad_request, image_error_status
from cpt_serving.web.uploads import EncodedImage, NormalizedInput, Upload, parse_json


def to_rows(
    content: Sequence[Upload] | bytes, preprocessing: Preprocessing, settings: ServeSettings
) -> npt.NDArray[np.float32]:
    """Turn a request's content into the model's input. Takes long for large images: call it in a thread.

    Args:
        content: The uploads, or the JSON that holds them.
        preprocessing: The bundle's.
        settings: The limits.

    Returns:
        Normalised inputs, float32 (N, C, H, W), in the order of the uploads.

    Raises:
        RequestError: 400 or 413; the message names the upload.
    """
    uploads = parse_json(content, max_rows=settings.max_rows) if isinstance(content, bytes) else content
    rows = np.empty((len(uploads), *preprocessing.input_shape), np.float32)
    budget = settings.max_request_pixels
    for index, upload in enumerate(uploads):
        try:
            if isinstance(upload, EncodedImage):
                image = decode_image(upload.data, max_pixels=min(settings.max_pixels, budget))
                budget -= image.width * image.height
                rows[index] = preprocessing.apply(image)
            elif isinstance(upload, NormalizedInput):
                rows[index] = _normalized(upload, preprocessing)
            else:
                rows[index] = preprocessing.apply(upload.values)
        except ImageError as error:
            raise RequestError(image_error_status(error), f"{error.message}, in {upload.name}") from error
        except ValueError as error:
            raise bad_request(f"{error}, in {upload.name} (arrays of integers only are taken as pixels)") from error
    return rows


def _normalized(upload: NormalizedInput, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    if upload.values.shape != preprocessing.input_shape:
        raise bad_request(
            f"Expected a normalised array of shape (C, H, W) = {preprocessing.input_shape}, "
            f"but got {upload.values.shape}, in {upload.name} (pixels are integers 0..255 in the order (H, W, C))"
        )
    return upload.values
