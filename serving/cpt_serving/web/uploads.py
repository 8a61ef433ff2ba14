"""Extract images from the body of a `/predict` request: multipart files, a raw image, or JSON with base64 or arrays."""

import asyncio
import binascii
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from cpt_serving.settings import ServeSettings
from cpt_serving.web.bodies import charge, running_body, too_large
from cpt_serving.web.errors import RequestError, bad_request
from cpt_serving.web.json_bodies import parse_object
from cpt_serving.web.numbers import to_numbers
from cpt_serving.web.shown import near_name, shown

FILE_FIELDS = ("file", "files", "image", "images", "data")
JSON_KEYS = ("image", "images", "instances")

ArrayKind = Literal["pixels", "normalized"]

_PIECE_BYTES = 64 * 1024
_MOST_FIELDS = 16
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\n\r\v\f"


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file as the client sent it, with its name for errors."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Pixels:
    """Decoded pixels, uint8 (H, W) or (H, W, C), of any size."""

    name: str
    values: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class NormalizedInput:
    """A model's input as the client computed it, float32 (C, H, W)."""

    name: str
    values: npt.NDArray[np.float32]


Upload = EncodedImage | Pixels | NormalizedInput


async def read_content(request: Request, settings: ServeSettings) -> list[EncodedImage] | bytes:
    """Read the body of a request: return its files, or the bytes of its JSON.

    Raises:
        RequestError: 415 for an unknown content type, 400 for a body without an image, 413 for one that is too large;
            and like `RequestBody.read`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    is_image = kind in {"", "application/octet-stream"} or kind.startswith("image/")
    if not (is_json or is_image or kind == "multipart/form-data"):
        raise RequestError(
            415,
            "Expected a body of type multipart/form-data, image/*, application/octet-stream or application/json, "
            f"but got {shown(kind)} "
            "(with curl: -F file=@image.png, or --data-binary @image.png -H 'Content-Type: image/png')",
        )
    body = await running_body().read(settings.max_json_bytes if is_json else settings.max_body_bytes)
    if kind == "multipart/form-data":
        return await _read_form(request, body, settings.max_rows)
    if is_json:
        return body
    if not body:
        raise bad_request("Expected an image, but got an empty body")
    if kind == "" and body.lstrip()[:1] == b"{":
        if len(body) > settings.max_json_bytes:
            raise too_large(settings.max_json_bytes, "more")
        return body
    return [EncodedImage("the image", body)]


def parse_json(body: bytes, *, max_rows: int) -> list[Upload]:
    """Return the images of a JSON body.

    One of three keys holds them: `image` (one base64 text), `images` (a list of those), or `instances`: a list whose
    items are `{"b64": text}`, pixels or normalised inputs. Pixels are integers 0..255 of shape (H, W), (H, W, 1)
    or (H, W, 3), of any size. Normalised inputs are the model's own inputs, of shape (C, H, W). Arrays of integers
    only count as pixels, arrays with any fraction as normalised; `"kind": "pixels" | "normalized"` states it where
    that would be ambiguous.

    Raises:
        RequestError: 400 for other JSON; 413 for more than `max_rows` images.
    """
    content = parse_object(body)
    unknown = sorted(set(content) - {*JSON_KEYS, "kind"})
    present = [key for key in JSON_KEYS if key in content]
    if unknown or len(present) != 1:
        raise bad_request(
            f'Expected one of the keys "image", "images" and "instances", but got {shown(unknown or present or "none")}'
            + "".join(near_name(name, (*JSON_KEYS, "kind")) for name in unknown[:1])
        )
    kind = content.get("kind")
    # A tuple, not a set: values of JSON may not be hashable.
    if kind not in (None, "pixels", "normalized"):
        raise bad_request(f'Expected kind to be "pixels" or "normalized", but got {shown(kind)}')
    key = present[0]
    items = [content[key]] if key == "image" else content[key]
    if not isinstance(items, list) or not items:
        raise bad_request(f"Expected {key} to be a list of one or more, but got {shown(items)}")
    check_rows(len(items), max_rows)
    names = ["the image"] if len(items) == 1 else [f"{key}[{index}]" for index in range(len(items))]
    if key == "instances":
        return [_instance(name, item, kind) for name, item in zip(names, items, strict=True)]
    return [EncodedImage(name, decode_base64(name, item)) for name, item in zip(names, items, strict=True)]


def check_rows(rows: int, max_rows: int) -> None:
    """Raise a RequestError, 413, if a request holds too many rows."""
    if rows > max_rows:
        raise RequestError(413, f"Expected at most {max_rows} rows in one request, but got {rows}")


class _FormInMemory(MultiPartParser):
    """Starlette's parser without temporary files: the body is in memory already, and the disk may not be writable."""

    spool_max_size = 0  # of `SpooledTemporaryFile`: never


async def _read_form(request: Request, body: bytes, max_rows: int) -> list[EncodedImage]:
    charge(len(body))

    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _PIECE_BYTES):
            yield body[start : start + _PIECE_BYTES]
            await asyncio.sleep(0)  # let other requests run, health checks above all

    # One file more than allowed, so that the error is ours below and not the parser's.
    parser = _FormInMemory(request.headers, pieces(), max_files=max_rows + 1, max_fields=_MOST_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad_request(f"Expected a form with files, but got: {error.message}") from error
    try:
        return await _files_of(form, max_rows)
    finally:
        await form.close()


async def _files_of(form: FormData, max_rows: int) -> list[EncodedImage]:
    items = form.multi_items()
    files = [part for _, part in items if isinstance(part, UploadFile)]
    fields = {field for field, _ in items}
    if not files or not fields <= set(FILE_FIELDS) or len(files) != len(items):
        raise bad_request(
            f"Expected one or more files under the names {', '.join(FILE_FIELDS)}, "
            f"but got {shown(sorted(fields) or 'none')} (with curl: -F file=@image.png)"
        )
    check_rows(len(files), max_rows)
    names = [_upload_name(index, part, len(files)) for index, part in enumerate(files)]
    return [EncodedImage(name, await part.read()) for name, part in zip(names, files, strict=True)]


def _upload_name(index: int, part: UploadFile, count: int) -> str:
    # A client's own charset can decode to surrogates, which no answer can hold.
    known = (part.filename or "")[:100].encode("utf-8", "backslashreplace").decode()
    name = f" ({known})" if known else ""
    return f"the image{name}" if count == 1 else f"image {index + 1} of {count}{name}"


def _instance(name: str, item: object, kind: ArrayKind | None) -> Upload:
    if isinstance(item, dict):
        if set(item) != {"b64"}:
            raise bad_request(
                f'Expected {name} to be an array or {{"b64": ...}}, but got the keys {shown(sorted(item))}'
            )
        return EncodedImage(name, decode_base64(name, item["b64"]))
    array = to_numbers(name, item)
    if kind == "normalized" or (kind is None and array.dtype.kind == "f"):
        return NormalizedInput(name, array.astype(np.float32))
    if array.dtype.kind == "f" or array.min() < 0 or array.max() > 255:
        raise bad_request(f"Expected the pixels of {name} to be integers 0..255, but got {array.min()}..{array.max()}")
    return Pixels(name, array.astype(np.uint8))


def decode_base64(name: str, text: object) -> bytes:
    """Return the bytes of a base64 text.

    Raises:
        RequestError: 400 if it is not base64, or empty.
    """
    if not isinstance(text, str):
        raise bad_request(f"Expected {name} to be base64 text, but got {type(text).__name__}")
    # Data URLs, line breaks, the URL-safe alphabet and missing padding are common, and none of them is ambiguous.
    payload = text.rpartition(",")[2] if text.startswith("data:") else text
    try:
        characters = payload.encode("ascii").translate(_STANDARD_ALPHABET, _SPACE).rstrip(b"=")
        data = binascii.a2b_base64(characters + b"=" * (-len(characters) % 4), strict_mode=True)
    except ValueError as error:  # includes binascii.Error
        raise bad_request(f"Expected {name} to be base64 text, but got: {error}") from error
    if not data:
        raise bad_request(f"Expected {name} to be base64 text, but got an empty one")
    return data
