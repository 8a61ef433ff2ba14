"""Decode untrusted bytes to pixels; shared by evaluation in training, `cpt predict` and the server.

The pixels are 8-bit, upright and opaque, so that preprocessing is independent of the source of an image.
"""

import math
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from cpt_deploy.bundle.processors.image_structure import CountedFile, require_ordinary_structure
from cpt_deploy.errors import DataError, ImageError, ImageTooLargeError

MAX_PIXELS = 64 * 1024 * 1024
"""Default limit of decoded pixels (64 Mi: a 256 MiB RGBA buffer; enough for a 60-megapixel photograph)."""

IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Supported formats; some of Pillow's others run external programs (EPS) or allocate memory at once (ICO)."""

_BACKGROUND = 255

_AT_ONCE = 1 << 20
"""Number of pixels that are reduced to 8 bits at a time."""

_PASSES = 8
"""Maximum number of times that the pieces of an image cover it; a piece for each colour does 5 times."""

_PROFILE_TEXT = 1 << 20
"""Maximum characters of EXIF data that a PNG holds as text."""

_PYTHON_DECODERS = {"bmp_rle", "ppm", "ppm_plain"}
"""Pillow's decoders in Python: run lengths in BMP, text in PPM, and maxima of PPM other than 255 and 65535."""

_CODEC_BYTES = {"AVIF": 12, "JPEG2000": 16, "TIFF": 4, "WEBP": 8}
"""Bytes of working memory per pixel in a codec, in addition to the decoded pixel."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Entries of an image's `info` from which Pillow reads an orientation."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an image file to 8-bit pixels.

    The declared size is checked before any pixel memory is allocated. The EXIF orientation is applied, and the mode is
    reduced as in `to_eight_bit`.

    Args:
        data: The whole file, in one of `IMAGE_FORMATS`.
        max_pixels: Maximum number of pixels (width x height) that the file may declare.

    Returns:
        An image of mode "L" (gray) or "RGB".

    Raises:
        ImageError: If the bytes are not an image, or a truncated or damaged one.
        ImageTooLargeError: If the image declares more than `max_pixels`.
    """
    with open_image(data, max_pixels=max_pixels) as image:
        return pixels_of(image)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Read the header of an image file, with size and mode; the pixels are decoded by `pixels_of`.

    Raises:
        ImageError: If the bytes are not an image, its header is damaged, or its structure is out of the ordinary.
        ImageTooLargeError: If the image declares more than `max_pixels`.
    """
    require_ordinary_structure(data)
    file = CountedFile(data)
    try:
        image = Image.open(file, formats=_formats())
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(max_pixels, "far more") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"Expected an image file, but got {len(data)} bytes of another kind",
            hint=f"supported formats: {', '.join(IMAGE_FORMATS)}",
        ) from error
    except Exception as error:
        raise _damaged(error) from error
    if image.width * image.height > max_pixels:
        raise _too_large(max_pixels, f"{image.width} x {image.height}")
    pieces = [tile[1] for tile in image.tile if tile[1] is not None]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in pieces)
    if covered > _PASSES * image.width * image.height:
        raise ImageError("Expected an ordinary image file, but got one whose pieces overlap")
    if len(image.info.get("Raw profile type exif", "")) > _PROFILE_TEXT:
        raise ImageError(f"Expected EXIF data of at most {_PROFILE_TEXT} characters, but got more")
    if is_decoded_in_python(image):
        file.reads = math.inf  # they read the pixels one by one
    return image


def is_decoded_in_python(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened image file is decoded pixel by pixel in Python, thousands of times slower than in C."""
    return any(tile[0] in _PYTHON_DECODERS for tile in image.tile)


def pixels_of(image: Image.Image) -> Image.Image:
    """Decode an opened image file; see `decode_image`.

    Raises:
        ImageError: If it is truncated or damaged.
    """
    try:
        image.load()
        return to_eight_bit(upright(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(MAX_PIXELS, "far more") from error
    except Exception as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> ImageError:
    # On hostile bytes Pillow's plugins raise many kinds of errors (struct.error, IndexError, ...); all of them mean a
    # damaged image.
    reason = str(error).rstrip(".") or type(error).__name__
    return ImageError(f"Expected a complete image, but got a damaged one: {reason}")


def decoding_bytes(image: Image.Image) -> int:
    """Return an upper bound of the memory for decoding an opened image file, in bytes, from its header."""
    stored = 1 if image.mode in {"1", "L", "P"} else 4
    gray = image.mode in {"1", "L", "LA", "La", "F"} or image.mode.startswith("I")
    reduced = 0 if image.mode in {"L", "RGB"} and "transparency" not in image.info else 1 if gray else 4
    # Rotating takes a second copy; only in JPEG is the orientation known from the header.
    turned = 0 if image.format == "JPEG" and _turn(image) is None else stored
    codec = _CODEC_BYTES.get(image.format or "", 0) + (6 if "progressive" in image.info else 0)
    return image.width * image.height * (stored + reduced + turned + codec)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read and decode an image file; see `decode_image`.

    Raises:
        DataError: If the file cannot be read.
        ImageError: If it is not an image, is damaged or too large; the message names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Expected a readable image file at {path}, but got: {error.strerror or error}") from error
    try:
        return decode_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from error


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Reduce a loaded image of any mode to opaque gray ("L") or "RGB".

    Transparency is composited on white, as browsers and viewers show it. 16-bit gray is scaled by 255/65535 with
    rounding, never clipped; floating-point gray is taken as 0..1. Palettes, CMYK and YCbCr become RGB.

    Raises:
        ImageError: If the mode has no defined reduction, or gray values are out of range.
    """
    if image.mode in {"L", "RGB"} and "transparency" not in image.info:
        return image
    rows = max(1, _AT_ONCE // image.width)
    if image.height <= rows:
        return _reduced(image)
    # Reduce in strips, so that temporary memory stays small and other threads can run in between.
    whole: Image.Image | None = None
    for top in range(0, image.height, rows):
        strip = _reduced(image.crop((0, top, image.width, min(top + rows, image.height))))
        whole = whole or Image.new(strip.mode, image.size)
        whole.paste(strip, (0, top))
    assert whole is not None, "an image has a row"
    return whole


def _reduced(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_gray(image)
    if image.has_transparency_data:
        gray = image.mode in {"1", "L", "LA", "La"}
        # Modes with premultiplied alpha convert only to the same mode with straight alpha.
        straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "LA" if gray else "RGBA"))
        canvas = Image.new("L" if gray else "RGB", image.size, _BACKGROUND if gray else (_BACKGROUND,) * 3)
        canvas.paste(straight.convert(canvas.mode), mask=straight.getchannel("A"))
        return canvas
    try:
        return image.convert("L" if image.mode == "1" else "RGB")
    except ValueError as error:
        raise ImageError(f"Expected an image with gray or colour values, but got mode {image.mode!r}") from error


def _too_large(max_pixels: int, declared: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"Expected an image of at most {max_pixels} pixels, but got one that declares {declared}",
        hint="send a smaller image",
    )


def _formats() -> list[str]:
    """Return those of `IMAGE_FORMATS` that this build of Pillow supports."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def upright(image: Image.Image) -> Image.Image:
    """Return an image as its EXIF orientation shows it; one that was turned has no EXIF any more."""
    method = _turn(image)
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = {key: value for key, value in turned.info.items() if key not in _WITH_ORIENTATION}
    return turned


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes an image upright by its EXIF; None if it is upright or has no valid EXIF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, OSError):
        return None
    return _UPRIGHT.get(orientation)


def _scale_gray(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    top = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):
        raise ImageError(f"Expected gray values of mode {image.mode!r} in 0..{top:g}, but got {low:g}..{high:g}")
    scaled = np.rint(values.astype(np.float64) * (255.0 / top))
    return Image.fromarray(scaled.astype(np.uint8))
