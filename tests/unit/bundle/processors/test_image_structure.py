"""Files whose structure would keep a decoder busy or fill the memory are refused; ordinary ones are decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cpt_deploy.bundle import decode_image
from cpt_deploy.bundle.processors.image_structure import MAX_SCANS
from cpt_deploy.errors import ImageError

RATIONALS = struct.pack("<II", 1, 3) * 10_000


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8))
JPEG, PNG = encode(PICTURE, "JPEG"), encode(PICTURE, "PNG")


def segment(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def progressive(scans: int) -> bytes:
    """A progressive JPEG with empty scans, each after a comment that holds the markers of an end and of a scan."""
    data = encode(PICTURE, "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    head = data[:scan]
    own = data.count(b"\xff\xda")
    one = segment(0xFE, b"\xff\xd9\xff\xda") + segment(0xDA, bytes([1, 1, 0, 1, 1, 0]))
    return head + data[scan:-2] + one * (scans - own) + b"\xff\xd9"


def exif(values: bytes, count: int, *, shift: int = 0) -> bytes:
    """EXIF data with a number of rationals as its resolution."""
    return b"II*\0" + struct.pack("<I", 8 + shift) + bytes(shift) + directory("<", count, 26 + shift) + values


def directory(order: str, count: int, offset: int) -> bytes:
    return struct.pack(f"{order}HHHIII", 1, 0x112, 5, count, offset, 0)


def exif_segments(data: bytes) -> bytes:
    return b"".join(segment(0xE1, b"Exif\0\0" + data[start : start + 60_000]) for start in range(0, len(data), 60_000))


def tiff(*more: tuple[int, int, int, int], side: int = 4, rows: int = 4, offsets: int = 1) -> bytes:
    """An uncompressed gray TIFF with further tags, whose strips are all in the same place."""
    strips = (4, 1, 2000) if offsets == 1 else (4, offsets, 2000)
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, *strips)]
    tags += [(277, 3, 1, 1), (278, 4, 1, rows), (279, *strips), *more]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return head.ljust(2000, b"\0") + struct.pack("<I", 2000) * offsets + bytes(side * side)


def directory_below(kind: int, value: int) -> bytes:
    """A TIFF whose directory for EXIF is at 1000, and names that many numbers; the number 1000 is also at 1100."""
    data = bytearray(tiff((34665, kind, 1, value)) + RATIONALS)
    data[1000:1014] = struct.pack("<HHHII", 1, 4, 5, 10_000, 2000)
    data[1100:1108] = struct.pack("<Q", 1000)
    return bytes(data)


def jpeg_2000(boxes: int) -> bytes:
    data = encode(PICTURE, "JPEG2000", no_jp2=False)
    at = data.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", data, at)
    free = b"\0\0\0\x08free" * boxes
    return data[:at] + struct.pack(">I", length + len(free)) + data[at + 4 : at + length] + free + data[at + length :]


GIF = encode(PICTURE.convert("P"), "GIF")
GIF_IMAGE = GIF.index(b"\x2c", 13 + 768)
TEXT = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1000)))
FRAMES = [Image.effect_noise((8, 8), 50 + index) for index in range(300)]

ORDINARY = {
    "progressive": encode(PICTURE, "JPEG", progressive=True),
    "64 scans": progressive(MAX_SCANS),
    "metadata": JPEG[:2]
    + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 255
    + segment(0xFE, b"x") * 50
    + JPEG[2:],
    "divided EXIF": JPEG[:2] + exif_segments(exif(bytes(8) + bytes(100_000), 1)) + JPEG[20:],
    "padding": JPEG[:2] + b"\xff" * 1000 + JPEG[2:],
    "PNG chunks": PNG[:33] + chunk(b"prVt", b"x") * 1000 + TEXT * 10 + PNG[33:],
    "GIF comments": GIF[:GIF_IMAGE] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * 1000 + b"\0" + GIF[GIF_IMAGE:],
    "frames": encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "frames of a PNG": encode(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "pages": encode(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
    "pictures": encode(PICTURE, "MPO", save_all=True, append_images=[PICTURE] * 20),
    "strips": tiff(side=500, rows=1, offsets=500),
    "boxes": jpeg_2000(1000),
    "12 bits": b"P5 600 600 4095\n" + bytes(600 * 600 * 2),
    "text": b"P2 200 200 255\n" + b"7 " * 40_000,
    "bitmap": encode(PICTURE.resize((900, 900)), "BMP"),
}

COSTLY = {
    "scans": progressive(MAX_SCANS + 1),
    "segments": JPEG[:2] + segment(0xE9, b"") * 20_000 + JPEG[2:],
    "segments between scans": JPEG[:-2] + segment(0xFE, b"") * 20_000 + JPEG[-2:],
    "junk": JPEG[:2] + b"\xff\xd0" * 20_000 + JPEG[2:],
    "tables": JPEG[:2] + segment(0xDB, (b"\0" + bytes(range(1, 65))) * 500) * 3 + JPEG[2:],
    "layers": JPEG[:2] + segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 3) + bytes([1, 17, 0]) * 9000) * 3 + JPEG[2:],
    "EXIF segments": JPEG[:2] + segment(0xE1, b"Exif\0\0") * 65 + JPEG[2:],
    "Photoshop": JPEG[:2] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000) + JPEG[2:],
    "EXIF": JPEG[:2] + exif_segments(exif(RATIONALS, 10_000)) + JPEG[20:],
    "EXIF in a later segment": JPEG[:2] + exif_segments(exif(RATIONALS, 10_000, shift=100_000)) + JPEG[20:],
    "PNG chunks": PNG[:33] + chunk(b"prVt", b"") * 20_000 + PNG[33:],
    "PNG data": PNG[:33] + chunk(b"IDAT", b"") * 20_000 + PNG[33:],
    "PNG text": PNG[:33] + TEXT * 33 + PNG[33:],
    "PNG EXIF": PNG[:33] + chunk(b"eXIf", exif(RATIONALS, 10_000)) + PNG[33:],
    **{
        f"EXIF of {magic!r}": PNG[:33]
        + chunk(b"eXIf", magic + struct.pack(f"{order}I", 8) + directory(order, 10_000, 26) + RATIONALS)
        + PNG[33:]
        for magic, order in ((b"II\0*", "<"), (b"MM\0*", ">"), (b"MM*\0", ">"), (b"MM\0+", ">"))
    },
    "EXIF of BigTIFF": PNG[:33]
    + chunk(b"eXIf", b"II+\0\x08\0\0\0" + struct.pack("<QQHHQQ", 16, 1, 0x112, 5, 10_000, 44) + RATIONALS)
    + PNG[33:],
    "PNG EXIF as text": PNG[:33] + chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 1_100_000) + PNG[33:],
    "GIF comments": GIF[:GIF_IMAGE] + b"\x21\xfe\x01a\0" * 20_000 + GIF[GIF_IMAGE:],
    "TIFF numbers": tiff((700, 3, 140_000, 2000)) + bytes(280_000),
    "TIFF strips": tiff(side=50, rows=49, offsets=1000),
    "TIFF tags": struct.pack("<2sHIH", b"II", 42, 8, 1100) + struct.pack("<HHII", 60_000, 99, 1, 1) * 1100,
    "TIFF directory": directory_below(4, 1000),
    "TIFF directory by a long number": directory_below(16, 1100),
    "boxes": jpeg_2000(140_000),
    "PPM comments": b"P5 4 4 " + b"#\n" * 20_000 + b"255 " + bytes(16),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_are_decoded(name):
    assert decode_image(ORDINARY[name]).mode in {"L", "RGB"}


@pytest.mark.parametrize("name", COSTLY)
def test_files_with_far_more_blocks_than_ordinary_ones_are_refused(name):
    with pytest.raises(ImageError, match=r"Expected (an ordinary image file|EXIF data of at most)"):
        decode_image(COSTLY[name])
