import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cpt_deploy.bundle import Preprocessing, decode_image

IMAGENET = Preprocessing(
    3, (224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256, interpolation="bilinear"
)
DIGITS = Preprocessing(1, (8, 8), mean=(0.3,), std=(0.25,))


def test_normalisation_matches_the_formula():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = (pixels.astype(np.float64) / 255 - 0.1) / 0.7
    made = Preprocessing(1, (16, 16), mean=(0.1,), std=(0.7,)).apply(pixels)
    assert made.dtype == np.float32
    assert np.array_equal(made[0], expected.astype(np.float32))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (257, 999), (224, 224), (50, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_resize_and_crop_match_torchvision(size, interpolation):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mode = transforms.InterpolationMode(interpolation)
    oracle = transforms.Compose([transforms.Resize(256, interpolation=mode), transforms.CenterCrop(224)])
    preprocessing = Preprocessing(3, (224, 224), IMAGENET.mean, IMAGENET.std, resize=256, interpolation=interpolation)
    assert np.array_equal(preprocessing.fit(pixels), np.asarray(oracle(Image.fromarray(pixels))))


def test_whole_pipeline_matches_torchvision_on_a_photograph(odd_images):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms.v2")
    image = decode_image((odd_images / "flower.webp").read_bytes())
    oracle = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )
    np.testing.assert_allclose(IMAGENET.apply(image), oracle(image).numpy(), atol=1e-6)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))))
def test_any_image_gives_the_shape_and_range_of_the_input(pixels):
    for preprocessing in (DIGITS, Preprocessing(3, (5, 9), (0.5,) * 3, (0.5,) * 3, resize=12)):
        made = preprocessing.apply(pixels)
        assert made.shape == preprocessing.input_shape
        assert made.flags.c_contiguous
        assert np.isfinite(made).all()


@given(arrays.arrays(np.uint8, (8, 8)))
def test_an_image_of_the_inputs_size_keeps_its_pixels(pixels):
    assert np.array_equal(DIGITS.fit(pixels)[..., 0], pixels)


def test_batches_are_normalised_as_single_images():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    preprocessing = Preprocessing(3, (8, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert np.array_equal(preprocessing.normalize(pixels), np.stack([preprocessing.apply(one) for one in pixels]))


def test_gray_is_repeated_and_colour_becomes_luma():
    gray, colour = Image.new("L", (8, 8), 77), Image.new("RGB", (8, 8), (255, 0, 0))
    assert set(Preprocessing(3, (8, 8), (0.0,) * 3, (1.0,) * 3).fit(gray).ravel()) == {77}
    assert set(DIGITS.fit(colour).ravel()) == {76}


def test_without_resize_the_proportions_are_kept():
    # A white square in the middle of a wide black image stays a square that fills the height.
    wide = Image.new("L", (40, 10))
    wide.paste(255, (15, 0, 25, 10))
    assert DIGITS.fit(wide).min() > 200


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.floats(4.1, 120),
    st.booleans(),
    st.integers(8, 80),
    st.sampled_from(["bilinear", "bicubic"]),
    st.integers(0, 2**32 - 1),
)
def test_long_images_are_scaled_where_the_crop_is_as_pillow_scales_the_whole(short, ratio, tall, side, filter, seed):
    sides = (short, int(short * ratio) + 1)
    height, width = reversed(sides) if tall else sides
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    crop = max(1, side * 7 // 8)
    scaled = (side, side * height // width) if tall else (side * width // height, side)
    whole = Image.fromarray(pixels).resize(scaled, Image.Resampling[filter.upper()])
    left, top = round((scaled[0] - crop) / 2), round((scaled[1] - crop) / 2)
    expected = np.asarray(whole)[top : top + crop, left : left + crop].astype(int)
    preprocessing = Preprocessing(3, (crop, crop), (0.5,) * 3, (0.5,) * 3, resize=side, interpolation=filter)
    difference = np.abs(preprocessing.fit(pixels) - expected)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 0.02 * difference.size + 3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(1, 4_000_000), (4_000_000, 1), (3, 900_001)], ids=str)
def test_a_strip_of_millions_of_pixels_needs_no_memory_for_its_scaled_form(size, interpolation):
    resource = pytest.importorskip("resource")
    preprocessing = Preprocessing(3, (224, 224), IMAGENET.mean, IMAGENET.std, resize=256, interpolation=interpolation)
    # A ramp along the strip, steep in the middle: 224 / 256 of a pixel around the centre is what is left of it.
    line = np.arange(max(size), dtype=np.int64) - max(size) // 2
    pixels = np.broadcast_to(np.clip(line * 20 + 128, 0, 255).astype(np.uint8), (min(size), max(size)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = preprocessing.fit(np.ascontiguousarray(pixels if size[0] < size[1] else pixels.T))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB; 256 rows alone are GBs
    assert 100 <= made.min() <= made.max() <= 160
    assert preprocessing.scaled_pixels(size[1], size[0]) <= 256 * 256


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.uint8), np.zeros(8, np.uint8), np.zeros((0, 8), np.uint8)],
    ids=["float", "four channels", "one dimension", "empty"],
)
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match="Expected pixels"):
        DIGITS.apply(pixels)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 2},
        {"size": (0, 8)},
        {"mean": (0.1, 0.2)},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
        {"resize": 4},
        {"interpolation": "lanczos"},
        {"crop": "random"},
    ],
    ids=str,
)
def test_unfit_fields_are_refused(change):
    with pytest.raises(ValueError, match="Expected"):
        Preprocessing.from_dict(DIGITS.to_dict() | change)


@pytest.mark.parametrize("preprocessing", [IMAGENET, DIGITS], ids=["imagenet", "digits"])
def test_round_trip_through_json(preprocessing):
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize(
    "fields", [{}, {"size": 8}, DIGITS.to_dict() | {"extra": 1}], ids=["empty", "scalar", "unknown"]
)
def test_incomplete_fields_are_refused(fields):
    with pytest.raises(ValueError, match="Expected"):
        Preprocessing.from_dict(fields)


def test_keys_of_other_readers():
    assert IMAGENET.to_timm()["crop_pct"] == 0.875
    assert IMAGENET.to_timm()["input_size"] == [3, 224, 224]
    hub = IMAGENET.to_huggingface()
    assert (hub["size"], hub["crop_size"]) == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert (hub["resample"], hub["image_mean"]) == (2, [0.485, 0.456, 0.406])
