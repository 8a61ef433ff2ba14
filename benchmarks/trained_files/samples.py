"""Inputs for trained ONNX files: photographs, speech, drawn pages and lines of text, prepared as each model asks.

Photographs and speech come from the data sets under `CPT_DATA_DIR`; without them, made-up images and chords take their
place. Text and pages are drawn with Pillow's own font. Everything is deterministic: sample `i` is always the same.
"""

import os
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps
from trained_files.packages import fetched

Pixels = NDArray[np.float32]
"""Values of one sample, (1, ...)."""

FOLDERS = ("hymenoptera_data", "camvid/train", "bccd")
_TEXT = (
    "able account after again amount annual answer area before benefit board bridge budget building case center "
    "chapter city clause client column contract country court data day delivery design director energy engine entry "
    "estimate field figure final first forest garden general group harbor health history house income index invoice "
    "item journal kilometer law letter level library limit list market measure member meeting method model month "
    "music nation network north note number office order origin page paper payment people period place plan point "
    "price process product project purpose quality quarter rate reason record region report result river sample "
    "school science section series service signal size society sound source state station street subject summary "
    "supply surface system table tax team test theory title total trade train travel unit value village volume "
    "water week winter work world year "
)
WORDS = _TEXT.split()


def _data() -> Path | None:
    root = os.environ.get("CPT_DATA_DIR")
    return Path(root) if root else None


@cache
def photographs() -> tuple[Path, ...]:
    """Return photographs under `CPT_DATA_DIR`, those of several data sets in turn."""
    root = _data()
    found = [sorted((root / name).rglob("*.jp*g")) for name in FOLDERS] if root else []
    found += [sorted((root / "camvid/train").rglob("*.png"))] if root else []
    found = [paths[:: max(1, len(paths) // 64)] for paths in found if paths]
    length = min(map(len, found), default=0)
    return tuple(paths[i] for i in range(length) for paths in found)


@cache
def recordings() -> tuple[Path, ...]:
    """Return recordings of speech under `CPT_DATA_DIR`, in an order that mixes speakers."""
    root = _data()
    found = sorted((root / "free-spoken-digits/recordings").glob("*.wav")) if root else []
    return tuple(found[i * 7 % len(found)] for i in range(len(found)) if len(found) % 7)


def _photo(i: int, size: tuple[int, int]) -> Image.Image:
    """Return photograph `i` in a size (width, height), its longer side fitted and the rest black."""
    if paths := photographs():
        image = Image.open(paths[i % len(paths)]).convert("RGB")
    else:
        rng = np.random.default_rng(i)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, w, h = rng.integers(0, (600, 440, 160, 160))
            draw.ellipse((x, y, x + w, y + h), fill=tuple(map(int, rng.integers(0, 256, 3))))
    scale = min(size[0] / image.width, size[1] / image.height)
    fitted = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", size)
    canvas.paste(fitted)
    return canvas


def _planes(image: Image.Image, mean: tuple[float, ...], deviation: tuple[float, ...], *, bgr: bool) -> Pixels:
    values = np.asarray(image, np.float32) / 255
    values = values[..., ::-1] if bgr else values
    normalised = (values - np.float32(mean)) / np.float32(deviation)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], np.float32)


def person(i: int) -> Pixels:
    """Return a photograph with a person in front of it, for a detector, RGB from 0 to 1, (1, 3, 320, 320).

    It is one portrait, mirrored, turned, lit and cut in many ways.
    """
    rng, image = np.random.default_rng(4000 + i), _photo(i, (320, 320))
    portrait = Image.open(fetched("scikit-image==0.25.2", "skimage/data/astronaut.png")).convert("RGB")
    portrait = portrait.crop((int(rng.integers(0, 90)), 0, int(rng.integers(400, 513)), int(rng.integers(300, 513))))
    portrait = ImageOps.mirror(portrait) if rng.random() < 0.5 else portrait
    portrait = portrait.rotate(float(rng.normal(0, 6)), Image.Resampling.BILINEAR)
    portrait = ImageEnhance.Brightness(portrait).enhance(float(rng.uniform(0.6, 1.3)))
    scale = float(rng.uniform(140, 300)) / max(portrait.size)
    portrait = portrait.resize((round(portrait.width * scale), round(portrait.height * scale)))
    image.paste(portrait, (int(rng.integers(0, 321 - portrait.width)), int(rng.integers(0, 321 - portrait.height))))
    return _planes(image, (0, 0, 0), (1, 1, 1), bgr=False)


def _words(rng: np.random.Generator, count: int) -> str:
    words = [str(word) for word in rng.choice(WORDS, count)]
    words = [word.capitalize() if rng.random() < 0.3 else word for word in words]
    return " ".join(word if rng.random() < 0.85 else str(rng.integers(10, 10**5)) for word in words)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return colours of ink and paper, dark on light or the reverse."""
    dark, light = tuple(map(int, rng.integers(0, 90, 3))), tuple(map(int, rng.integers(170, 256, 3)))
    return (dark, light) if rng.random() < 0.8 else (light, dark)


def text_scene(i: int) -> Pixels:
    """Return a photograph with words on it, as text detectors see signs and captions, (1, 3, 320, 320)."""
    rng = np.random.default_rng(i)
    image = _photo(i, (320, 320))
    draw = ImageDraw.Draw(image)
    y = int(rng.integers(4, 30))
    while y < 270:
        size, (ink, paper) = int(rng.integers(13, 34)), _colours(rng)
        text, x = _words(rng, int(rng.integers(1, 4))), int(rng.integers(2, 100))
        font = ImageFont.load_default(size=size)
        if rng.random() < 0.7:
            draw.rectangle(draw.textbbox((x, y), text, font=font), fill=paper)
        draw.text((x, y), text, ink, font=font)
        y += size + int(rng.integers(8, 50))
    return _planes(image, (0.5,) * 3, (0.5,) * 3, bgr=True)


def _line(i: int, width: int) -> Image.Image:
    """Return a line of text that fills a height of 48 pixels, cut or filled up to a width."""
    rng = np.random.default_rng(1000 + i)
    ink, paper = _colours(rng)
    font = ImageFont.load_default(size=int(rng.integers(24, 36)))
    image = Image.new("RGB", (width, 48), paper)
    draw = ImageDraw.Draw(image)
    text = _words(rng, int(rng.integers(1, 5)))
    while len(text) > 1 and draw.textlength(text, font=font) > width - 8:
        text = text[:-1]
    draw.text((4, 24 + int(rng.integers(-3, 4))), text.strip(), ink, font=font, anchor="lm")
    image = image.rotate(float(rng.normal(0, 0.7)), fillcolor=paper, resample=Image.Resampling.BILINEAR)
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.9))))
    noise = rng.normal(0, rng.uniform(0, 9), (48, width, 3))
    return Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8))


def text_line(i: int) -> Pixels:
    """Return a line of text for a recogniser, (1, 3, 48, 320)."""
    return _planes(_line(i, 320), (0.5,) * 3, (0.5,) * 3, bgr=True)


def turned_line(i: int) -> Pixels:
    """Return a line of text, every other one upside down, (1, 3, 48, 192)."""
    image = _line(i, 192)
    return _planes(image.rotate(180) if i // 2 % 2 else image, (0.5,) * 3, (0.5,) * 3, bgr=True)


def page(i: int) -> Pixels:
    """Return a page with a title, columns of text, a table and a figure, (1, 3, 800, 608)."""
    rng = np.random.default_rng(2000 + i)
    image = Image.new("RGB", (608, 800), (255, 255, 255) if rng.random() < 0.7 else (244, 240, 230))
    draw = ImageDraw.Draw(image)
    columns = int(rng.integers(1, 3))
    margin = int(rng.integers(30, 60))
    width = (608 - 2 * margin - 20 * (columns - 1)) // columns
    draw.text((margin, 18), _words(rng, 3), (90, 90, 90), font=ImageFont.load_default(size=9))
    draw.text((304, 60), _words(rng, int(rng.integers(3, 6))), (0, 0, 0), ImageFont.load_default(size=22), anchor="mm")
    for column in range(columns):
        x, y = margin + column * (width + 20), 100
        while y < 740:
            y = _block(image, draw, rng, (x, y, width), min(740 - y, int(rng.integers(60, 220)))) + 14
    return _planes(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), bgr=False)


def _block(
    image: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator, place: tuple[int, int, int], height: int
) -> int:
    """Draw a heading with a paragraph, a table or a figure with its caption, and return where it ends."""
    x, y, width = place
    small, kind = ImageFont.load_default(size=10), rng.random()
    if kind < 0.6 or height < 60:
        if rng.random() < 0.4:
            draw.text((x, y), _words(rng, 3), (0, 0, 0), font=ImageFont.load_default(size=14))
            y, height = y + 22, height - 22
        for line in range(max(1, height // 13)):
            text = _words(rng, width // 30)
            while draw.textlength(text, font=small) > width:
                text = text[:-1]
            draw.text((x, y + 13 * line), text, (20, 20, 20), font=small)
        return y + 13 * max(1, height // 13)
    bottom = y + height - 16
    if kind < 0.8:
        rows, cells = max(2, (bottom - y) // 18), int(rng.integers(2, 6))
        for row in range(rows + 1):
            draw.line((x, y + 18 * row, x + width, y + 18 * row), (0, 0, 0))
            for cell in range(cells if row < rows else 0):
                draw.text((x + 4 + cell * width // cells, y + 4 + 18 * row), _words(rng, 1), (0, 0, 0), font=small)
        bottom = y + 18 * rows
    else:
        image.paste(_photo(int(rng.integers(0, 200)), (width, bottom - y)), (x, y))
    draw.text((x + width // 2, bottom + 8), f"Figure {rng.integers(1, 20)}: {_words(rng, 3)}", (0, 0, 0), small, "mm")
    return bottom + 16


RATE, LENGTH = 22050, 43844


def sound(i: int) -> Pixels:
    """Return two seconds of speech or of made-up chords at 22,050 Hz, (1, 43844, 1), from -1 to 1."""
    rng, files = np.random.default_rng(3000 + i), recordings()
    if files and i % 4 > 1:
        samples = np.concatenate([_recording(files[(4 * i + k) % len(files)]) for k in range(4)])
        samples = np.resize(samples, LENGTH)
    else:
        samples = np.zeros(LENGTH)
        for _ in range(int(rng.integers(4, 14))):
            begin, length = int(rng.integers(0, 35000)), int(rng.integers(4000, 20000))
            samples[begin : begin + length] += _note(rng, min(length, LENGTH - begin))
        samples += rng.normal(0, 0.002, LENGTH)
    peak = np.abs(samples).max()
    return (samples / peak * rng.uniform(0.3, 1.0)).astype(np.float32)[None, :, None]


def _note(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    """Return a note of some harmonics that dies away."""
    seconds = np.arange(length) / RATE
    frequency = 440 * 2 ** ((int(rng.integers(36, 84)) - 69) / 12)
    harmonics = range(1, 1 + int(rng.integers(3, 9)))
    tone = sum(
        np.sin(2 * np.pi * frequency * h * seconds + rng.uniform(0, 6)) / h ** rng.uniform(0.8, 2) for h in harmonics
    )
    envelope = np.minimum(1, seconds / 0.01) * np.exp(-seconds * rng.uniform(0.5, 5))
    faded: NDArray[np.float64] = tone * envelope * rng.uniform(0.2, 1)
    return faded


def _recording(path: Path) -> NDArray[np.float64]:
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 2**15
        seconds = len(values) / file.getframerate()
    times = np.arange(int(seconds * RATE)) / RATE
    return np.interp(times, np.arange(len(values)) / len(values) * seconds, values)


def described(samples: Callable[[int], Pixels]) -> str:
    """Return in words what samples a function returns here."""
    photos, speech = bool(photographs()), bool(recordings())
    return {
        person: f"a portrait on {'photographs' if photos else 'made-up images'}",
        text_scene: f"text drawn on {'photographs' if photos else 'made-up images'}",
        text_line: "drawn lines of text",
        turned_line: "drawn lines of text, half of them upside down",
        page: "drawn pages",
        sound: "speech and made-up notes" if speech else "made-up notes",
    }[samples]
