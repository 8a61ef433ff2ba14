import io
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cpt_deploy.bundle import decode_image, read_image
from cpt_deploy.bundle.processors import images
from cpt_deploy.bundle.processors.images import to_eight_bit
from cpt_deploy.errors import DataError, ImageError, ImageTooLargeError


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


PORTRAIT = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PORTRAIT, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(expected))


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 8])
def test_real_photographs_come_out_upright(odd_images, orientation):
    rotated = np.asarray(decode_image((odd_images / f"hopper_orientation_{orientation}.jpg").read_bytes()), int)
    upright = np.asarray(decode_image((odd_images / "hopper.jpg").read_bytes()), int)
    # JPEG was compressed anew after rotation, so pixels differ a little; a wrong turn differs by 50 and more.
    assert np.abs(rotated - upright).mean() < 10


def test_rotation_swaps_width_and_height(odd_images):
    assert decode_image((odd_images / "orientation_rectangle.jpg").read_bytes()).size == (1, 2)


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("hopper_gray.jpg", "L", (128, 128)),
        ("hopper.gif", "RGB", (128, 128)),
        ("pil_sample_cmyk.jpg", "RGB", (100, 100)),
        ("tiff_strip_cmyk_jpeg.tif", "RGB", (100, 100)),
        ("16bit.cropped.tif", "L", (64, 64)),
        ("hopper_16bit.pgm", "L", (128, 128)),
        ("apng_mode_16bit.png", "RGB", (128, 64)),
        ("1_trns.png", "L", (64, 64)),
        ("l_trns.png", "L", (64, 64)),
        ("invalid-exif.jpg", "RGB", (200, 200)),
        ("transparent.webp", "RGB", (200, 150)),
        ("avif_hopper.avif", "RGB", (128, 128)),
        ("chi.gif", "RGB", (320, 240)),
        ("decompression_bomb_extents.gif", "RGB", (100, 100)),
    ],
)
def test_odd_files_decode_to_gray_or_rgb(odd_images, name, mode, size):
    image = decode_image((odd_images / name).read_bytes())
    assert (image.mode, image.size) == (mode, size)


@pytest.mark.parametrize(
    "name",
    [
        "truncated_jpeg.jpg",
        "truncated_image.png",
        "truncated_end_chunk.png",
        "broken.png",
        "broken_data_stream.png",
        "zero_width.gif",
        "SOURCES.md",
    ],
)
def test_broken_files_are_image_errors_in_one_line(odd_images, name):
    with pytest.raises(ImageError) as caught:
        decode_image((odd_images / name).read_bytes())
    assert not isinstance(caught.value, ImageTooLargeError)
    assert caught.value.message.startswith("Expected")
    assert "\n" not in caught.value.message
    assert " at 0x" not in caught.value.message


def test_all_real_files_give_pixels_or_an_image_error(odd_images):
    for path in sorted(odd_images.iterdir()):
        try:
            image = decode_image(path.read_bytes())
        except ImageError:
            continue
        assert image.mode in {"L", "RGB"}, path.name


def test_decompression_bomb_is_refused(odd_images):
    with pytest.raises(ImageTooLargeError):
        decode_image((odd_images / "decompression_bomb.gif").read_bytes())
    with pytest.raises(ImageError):
        decode_image((odd_images / "decompression_bomb.ico").read_bytes())


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG", "PPM"])
def test_size_is_checked_before_pixels_are_allocated(format):
    data = encode(Image.new("L", (4000, 4000)), format, **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError, match="4000 x 4000"):
        decode_image(data, max_pixels=4000 * 4000 - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_an_image_of_exactly_the_limit_passes():
    assert decode_image(encode(Image.new("L", (10, 10))), max_pixels=100).size == (10, 10)


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert decoded.tolist() == [[0, 0, 1, 1, 128, 255]]


def test_sixteen_bit_photograph_matches_its_eight_bit_original(odd_images):
    wide = np.asarray(decode_image((odd_images / "hopper_16bit.pgm").read_bytes()), int)
    gray = np.asarray(decode_image((odd_images / "hopper.png").read_bytes()).convert("L"), int)
    assert np.corrcoef(wide.ravel(), gray.ravel())[0, 1] > 0.95
    assert abs(wide.mean() - gray.mean()) < 10


def test_floating_point_gray_is_zero_to_one_and_anything_else_is_refused():
    assert np.asarray(to_eight_bit(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))).tolist() == [
        [0, 128, 255]
    ]
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(ImageError, match="Expected gray values"):
            to_eight_bit(Image.fromarray(np.array([[bad]], np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "La", "RGBa"])
def test_transparent_pixels_become_white_and_opaque_ones_stay(mode):
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (100, 100, 100, 255))
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 100, 100, 100])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = 0
    elif mode in {"RGB", "L"}:
        image = rgba.convert(mode)
        image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    else:
        image = rgba.convert({"La": "LA"}.get(mode, "RGBA" if mode == "RGBa" else mode)).convert(mode)
    flat = to_eight_bit(image)
    assert flat.mode == ("L" if mode in {"LA", "L", "La"} else "RGB")
    assert np.asarray(flat).reshape(2, -1).tolist() == [[255] * len(flat.getbands()), [100] * len(flat.getbands())]


def test_half_transparent_pixels_are_blended():
    image = to_eight_bit(Image.new("RGBA", (1, 1), (0, 100, 200, 51)))
    assert image.getpixel((0, 0)) == (204, 224, 244)


def test_cmyk_becomes_rgb():
    assert decode_image(encode(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")).getpixel((0, 0)) == (255, 0, 0)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_format_that_runs_programs_is_not_decoded():
    with pytest.raises(ImageError):
        decode_image(encode(Image.new("RGB", (4, 4)), "EPS"))


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"BM", b"II*\0"])
)
def test_random_bytes_are_image_errors(data, magic):
    try:
        image = decode_image(magic + data, max_pixels=1_000_000)
    except ImageError:
        return
    assert image.mode in {"L", "RGB"}


@given(st.integers(0, 3000), st.integers(0, 255))
def test_flipped_bytes_never_escape_as_other_errors(position, value):
    data = bytearray(encode(PORTRAIT.resize((16, 16)), "JPEG"))
    data[position % len(data)] = value
    with suppress(ImageError):
        decode_image(bytes(data), max_pixels=1_000_000)


def test_read_image_names_the_file(tmp_path: Path):
    (tmp_path / "note.png").write_bytes(b"hello")
    with pytest.raises(ImageError, match=r"note\.png"):
        read_image(tmp_path / "note.png")
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "I;16", "F"])
@pytest.mark.parametrize("transparent", [False, True])
def test_modes_are_reduced_in_strips_as_at_once(monkeypatch, mode, transparent):
    values = np.random.default_rng(0).integers(0, 256, (70, 37, 4), np.uint8)
    image = {
        "P": lambda: Image.fromarray(values[..., :3]).quantize(64),
        "I;16": lambda: Image.fromarray(values[..., 0].astype(np.uint16) * 255),
        "F": lambda: Image.fromarray(values[..., 0].astype(np.float32) / 255),
    }.get(mode, lambda: Image.fromarray(values).convert(mode))()
    if transparent and mode == "P":
        image.info["transparency"] = 3
    whole = to_eight_bit(image)
    monkeypatch.setattr(images, "_AT_ONCE", 37 * 4)
    strips = to_eight_bit(image)
    assert strips.mode == whole.mode
    assert np.array_equal(np.asarray(strips), np.asarray(whole))
