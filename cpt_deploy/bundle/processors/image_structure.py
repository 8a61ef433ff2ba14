"""Limits on the structure of image files: ordinary files stay far below them, and no file can keep a decoder busy.

Pillow parses the headers of files in Python, and some formats allow any number of blocks, tables or passes over the
pixels. A file of some hundred compressed bytes can thereby cost minutes or gigabytes, however few pixels it declares.
"""

import io
import re
import struct

from cpt_deploy.errors import ImageError

MAX_SCANS = 64
"""Maximum scans of a JPEG: each passes over all pixels, even if it is empty. Progressive JPEGs have about 10."""

_READS = 1 << 14
_BYTES_PER_READ = 256
"""A file may be read in `_READS` pieces, and one more for each so many bytes: a PNG of 8 KiB chunks needs a tenth."""

_TABLE_BYTES = 1 << 16
"""Maximum bytes of a JPEG's quantization tables and frame headers; an ordinary one has less than 1 KiB."""

_BOX_BYTES = 1 << 20
"""Maximum bytes of the header box of a JPEG 2000, whose small boxes are parsed one by one."""

_ENTRIES = 1024
_NUMBERS = 1 << 17
_NUMBERS_PER_FRACTION = 16
"""Maximum entries of a TIFF directory, and numbers in them: as Python objects these take 10 times the bytes; fractions
take far longer than others, and files have few."""

_MAX_BLOCKS = {
    # Each continues the EXIF data, which is copied anew.
    b"\xff\xd8\xff": {b"Exif\0\0": 64, b"8BIM": 4096},
    # Each expands to up to 1 MiB.
    b"\x89PNG": {b"iCCP": 32, b"zTXt": 32, b"iTXt": 32},
}
"""Maximum number of blocks of a kind, by the format's first bytes."""

_JPEG, _JP2 = b"\xff\xd8\xff", b"\0\0\0\x0cjP  "
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS, _DQT = 0xD8, 0xD9, 0xDA, 0xDB
_APP1, _DHT, _JPG, _DAC = 0xE1, 0xC4, 0xC8, 0xCC
_EXIF = b"Exif\0\0"

_TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
"""The headers that Pillow takes, with two invalid ones."""

_SUBDIRECTORIES = {34665, 34853, 40965}
_SHORT, _LONG8 = 3, 16
_FRACTIONS = {5, 10}
_NUMBER_BYTES = {3: 2, 4: 4, 5: 8, 6: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value by its type, without the types that are read as text or bytes."""


class CountedFile(io.BytesIO):
    """The content of an image file, which can be read in a limited number of pieces.

    Attributes:
        reads: Number of reads that are left.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: float = _READS + len(data) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            ImageError: If there were too many reads.
        """
        self.reads -= 1
        if self.reads < 0:
            raise _too_many("blocks in the file")
        return super().read(size)


def require_ordinary_structure(data: bytes) -> None:
    """Raise an ImageError for a file that has far more blocks, tables or scans than ordinary ones."""
    for magic, blocks in _MAX_BLOCKS.items():
        if data.startswith(magic):
            for name, most in blocks.items():
                if data.count(name) > most:
                    raise _too_many(f"blocks {name.rstrip(bytes(1)).decode()}")
    if data.startswith(_JPEG):
        _check_jpeg(data)
    if data.startswith(_JP2):
        _check_jpeg_2000(data)
    _check_directories(data)


def _too_many(things: str) -> ImageError:
    return ImageError(f"Expected an ordinary image file, but got one with too many {things}")


def _check_jpeg(data: bytes) -> None:
    """Count the scans of the first image as libjpeg finds them, and the tables before them."""
    position, scans, tables = 2, 0, 0
    exif: list[bytes] = []
    for _ in range(_READS):
        found = _MARKER.search(data, position)
        if found is None:
            return
        position = found.end()
        kind = data[position - 1]
        if kind == _EOI:
            return
        if kind < 0xC0 or kind == _SOI:
            continue
        length = max(2, int.from_bytes(data[position : position + 2]))
        if kind == _APP1 and data.startswith(_EXIF, position + 2):
            exif.append(data[position + 2 + len(_EXIF) : position + length])
        position += length
        if kind == _SOS:
            # EXIF data may be divided among segments, so that its directories lie elsewhere than in the file.
            if scans == 0 and len(exif) > 1:
                _check_directories(b"".join(exif))
            scans += 1
        if kind == _DQT or (kind <= 0xCF and kind not in {_DHT, _JPG, _DAC}):
            tables += length
        if scans > MAX_SCANS:
            raise _too_many(f"scans, more than {MAX_SCANS}")
        if tables > _TABLE_BYTES:
            raise _too_many("tables")
    raise _too_many("segments")


def _check_jpeg_2000(data: bytes) -> None:
    position = 0
    for _ in range(_READS):
        head = data[position : position + 16]
        if len(head) < 16:
            return
        length, kind = struct.unpack_from(">I4s", head)
        if length == 1:
            length = struct.unpack_from(">Q", head, 8)[0]
        if kind == b"jp2h":
            if length > _BOX_BYTES:
                raise _too_many("bytes in its header")
            return
        if length < 8:
            return
        position += length
    raise _too_many("boxes")


def _check_directories(data: bytes) -> None:
    """Check the directories of a TIFF file, and of EXIF data, which are such a file within another."""
    checked = 0
    for header in _TIFF_HEADERS:
        start = data.find(header)
        while start >= 0:
            checked += 1
            if checked > _ENTRIES:
                raise _too_many("directories")
            _check_directory(data, start)
            start = data.find(header, start + 1)


def _check_directory(data: bytes, start: int) -> None:
    order = "<" if data[start : start + 1] == b"I" else ">"
    big = data[start + 2 : start + 3] == b"+"  # so Pillow reads "MM\0+" like "MM\0*"
    entry, pointer = (struct.Struct(f"{order}HHQQ"), "Q") if big else (struct.Struct(f"{order}HHII"), "I")
    try:
        waiting = [struct.unpack_from(order + pointer, data, start + (8 if big else 4))[0]]
    except struct.error:
        return
    numbers = 0
    for offset in waiting:  # grows by the directories that the first one names
        try:
            (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start + offset)
        except (struct.error, OverflowError):
            continue
        first = start + offset + (8 if big else 2)
        # Entries past the end of the file are none.
        present = min(count, max(0, len(data) - first) // entry.size)
        if present > _ENTRIES:
            raise _too_many("entries in a directory")
        for tag, kind, values, value in entry.iter_unpack(data[first : first + present * entry.size]):
            size = values * _NUMBER_BYTES.get(kind, 0)
            if size <= len(data):  # Pillow skips what would be larger than the file
                numbers += values * (_NUMBERS_PER_FRACTION if kind in _FRACTIONS else 1) if size else 0
            if tag in _SUBDIRECTORIES and values == 1 and len(waiting) <= len(_SUBDIRECTORIES):
                waiting.append(_pointer(data, start, value, kind, order + pointer))
        if numbers > _NUMBERS:
            raise _too_many("numbers in its directories")


def _pointer(data: bytes, start: int, value: int, kind: int, layout: str) -> int:
    """Return the offset in an entry: at the start of its field if it is short, elsewhere in the file if it is long."""
    field = struct.pack(layout, value)
    if kind == _SHORT:
        return int(struct.unpack_from(layout[0] + "H", field)[0])
    if kind == _LONG8 and len(field) < 8 and start + value + 8 <= len(data):
        return int(struct.unpack_from(layout[0] + "Q", data, start + value)[0])
    return value
