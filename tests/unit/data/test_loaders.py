import io
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.bundle.processors.images import decode_image
from cpt_deploy.data import (
    ArrayImages,
    FileImages,
    FittedImages,
    Share,
    batches_per_epoch,
    build_augmentations,
    eval_loader,
    load_images,
    train_loader,
    training_stream,
)
from cpt_deploy.data.images import CallableImages, limited
from cpt_deploy.data.sources.custom import load_custom
from cpt_deploy.errors import DataError, UsageError

CROP_AND_FLIP = [("random_crop", {"padding": 2}), ("hflip", {})]
GRAY = Preprocessing(1, (8, 8), mean=(0.3,), std=(0.4,))
# Python 3.12 warns of forking a process with threads, which is how loading processes start.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def batches(images, preprocessing=GRAY, augment=CROP_AND_FLIP, **options):
    settings = {"batch_size": 16, "seed": 0, "epoch": 0, **options}
    built = build_augmentations(augment, preprocessing.size)
    return list(train_loader(images, preprocessing, built, **settings))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True)
    )


def test_batch_depends_on_seed_epoch_and_index_alone(array_images):
    images = array_images()
    expected = batches(images)
    torch.manual_seed(99)
    random.seed(99)

    assert same(batches(images), expected)
    assert not same(batches(images, seed=1), expected)
    assert not same(batches(images, epoch=1), expected)


@forks
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(array_images, workers):
    images = array_images(channels=3)
    preprocessing = Preprocessing(3, (8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    augment = [*CROP_AND_FLIP, ("color_jitter", {}), ("rotation", {})]

    assert same(
        batches(images, preprocessing, augment, workers=workers), batches(images, preprocessing, augment, workers=0)
    )


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_skipped_batches_are_left_out_and_the_rest_is_the_same(array_images, skip):
    images = array_images()

    assert same(batches(images, skip_batches=skip), batches(images)[skip:])


def test_epoch_has_every_image_at_most_once(array_images):
    images = array_images(count=50, classes=50)
    images = ArrayImages("x", "train", images.classes, np.arange(50), images.pixels)

    labels = torch.cat([y for _, y in batches(images)])

    assert len(labels) == 48
    assert len(labels.unique()) == 48


@pytest.mark.parametrize(("images", "batch_size", "expected"), [(50, 16, 3), (48, 16, 3), (10, 16, 1), (1, 1, 1)])
def test_incomplete_batch_is_left_out_unless_it_is_the_only_one(images, batch_size, expected):
    assert batches_per_epoch(images, batch_size) == expected


def test_small_set_is_one_batch(array_images):
    loaded = batches(array_images(count=10))

    assert [len(y) for _, y in loaded] == [10]


def test_random_states_are_given_back(array_images):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    batches(array_images(), augment=[("rotation", {}), ("randaugment", {})])

    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_without_augmentation_images_are_those_of_apply(array_images):
    images = array_images(count=20, classes=20)
    images = ArrayImages("x", "train", images.classes, np.arange(20), images.pixels)

    for inputs, labels in batches(images, augment=[], batch_size=5):
        for row, label in zip(inputs, labels, strict=True):
            assert np.array_equal(row.numpy(), GRAY.apply(images.image(int(label))))


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    channels=st.sampled_from([1, 3]),
    target=st.one_of(st.none(), st.tuples(st.integers(3, 12), st.integers(3, 12))),
    out_channels=st.sampled_from([1, 3]),
    extra=st.one_of(st.none(), st.integers(0, 5)),
    seed=st.integers(0, 2**31),
)
def test_evaluation_is_bit_identical_to_apply(size, channels, target, out_channels, extra, seed):
    generator = np.random.default_rng(seed)
    shape = (5, *size) if channels == 1 else (5, *size, 3)
    images = ArrayImages(
        "x", "test", ("a",), np.zeros(5, np.int64), generator.integers(256, size=shape, dtype=np.uint8)
    )
    wanted = target or size
    preprocessing = Preprocessing(
        out_channels,
        wanted,
        mean=tuple(generator.uniform(0, 1, out_channels)),
        std=tuple(generator.uniform(0.05, 1, out_channels)),
        resize=None if extra is None else max(wanted) + extra,
    )

    inputs = torch.cat([x for x, _ in eval_loader(images, preprocessing, 2)])

    assert inputs.dtype == torch.float32
    expected = np.stack([preprocessing.apply(images.image(index)) for index in range(5)])
    assert np.array_equal(inputs.numpy(), expected)


def test_evaluation_keeps_order_and_the_last_batch(array_images):
    images = array_images(count=10)

    loaded = list(eval_loader(images, GRAY, 4))

    assert [len(y) for _, y in loaded] == [4, 4, 2]
    assert torch.cat([y for _, y in loaded]).tolist() == images.labels.tolist()


@pytest.fixture
def photos(tmp_path):
    paths = []
    for index in range(6):
        paths.append(tmp_path / f"{index}.png")
        shape = (20 + index, 30 - index, 3)
        Image.fromarray(np.random.default_rng(index).integers(256, size=shape, dtype=np.uint8)).save(paths[-1])
    return FileImages("photos", "train", ("a",), np.zeros(6, np.int64), tuple(paths))


PHOTO = Preprocessing(3, (16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, resize=18)


def test_files_of_any_size_become_batches(photos):
    for augment in ([], CROP_AND_FLIP, [("random_resized_crop", {}), ("hflip", {}), ("color_jitter", {})]):
        loaded = batches(photos, PHOTO, augment, batch_size=3)
        assert [tuple(x.shape) for x, _ in loaded] == [(3, 3, 16, 16)] * 2


def test_files_in_gray(photos):
    preprocessing = Preprocessing(1, (16, 16), mean=(0.5,), std=(0.25,))

    loaded = batches(photos, preprocessing, [("random_resized_crop", {})], batch_size=3)

    assert loaded[0][0].shape == (3, 1, 16, 16)


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_one_line_that_names_it(photos, workers):
    photos.paths[3].write_bytes(photos.paths[3].read_bytes()[:100])

    with pytest.raises(DataError, match=r"3\.png") as caught:
        batches(photos, PHOTO, [], batch_size=2, workers=workers)
    assert "\n" not in str(caught.value)


@forks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_processes_does_not_end_the_loading_ones(array_images, number):
    loader = train_loader(array_images(count=400), GRAY, [], batch_size=8, seed=0, epoch=0, workers=1)
    loaded = [next(loader)]
    (worker,) = multiprocessing.active_children()

    os.kill(worker.pid, number)
    loaded += list(loader)

    assert len(loaded) == 50


def test_augmentation_that_changes_the_size_is_named(tmp_path, monkeypatch, array_images):
    (tmp_path / "own_shrink.py").write_text("def half():\n    return lambda image: image[:, ::2, ::2]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(UsageError, match=r"size \(8, 8\), but got own_shrink:half"):
        batches(array_images(), augment=[("own_shrink:half", {})])


def test_inputs_of_digits_are_normalised():
    images = load_images("digits", split="train")

    inputs = torch.cat([x for x, _ in eval_loader(images, Preprocessing(1, (8, 8), (0.3052,), (0.3760,)), 500)])

    assert float(inputs.mean()) == pytest.approx(0, abs=1e-3)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "augment", [[], CROP_AND_FLIP, [("rotation", {}), *CROP_AND_FLIP, ("trivialaugment", {})]], ids=len
)
def test_shares_of_a_batch_are_the_batch(array_images, count, augment):
    images = FittedImages(array_images(), GRAY)
    built = build_augmentations(augment, GRAY.size)

    def stream(share):
        return list(training_stream(images, built, batch_size=16, seed=3, batches=range(5, 9), share=share))

    parts = [stream(Share(index, count)) for index in range(count)]

    joined = [tuple(torch.cat(tensors) for tensors in zip(*same, strict=True)) for same in zip(*parts, strict=True)]
    assert same(joined, stream(Share()))


def test_stream_goes_on_through_epochs(array_images):
    images = array_images(count=50)
    built = build_augmentations(CROP_AND_FLIP, GRAY.size)

    stream = training_stream(FittedImages(images, GRAY), built, batch_size=16, seed=0, batches=range(1, 8))

    assert same(list(stream), batches(images, skip_batches=1) + batches(images, epoch=1) + batches(images, epoch=2)[:2])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_of_an_evaluation_are_all_images_once(array_images, count):
    images = array_images(count=23)

    loaded = [y for index in range(count) for _, y in eval_loader(images, GRAY, 4, share=Share(index, count))]

    assert torch.cat(loaded).tolist() == images.labels.tolist()


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_are_those_that_were_decoded(photos, workers, monkeypatch):
    expected = batches(photos, PHOTO, CROP_AND_FLIP, batch_size=3, workers=0)
    kept = FittedImages(photos, PHOTO, budget=10**6)
    assert kept.is_kept

    assert same(batches(kept, PHOTO, CROP_AND_FLIP, batch_size=3, workers=workers), expected)
    for path in photos.paths:
        path.unlink()
    assert same(batches(kept, PHOTO, CROP_AND_FLIP, batch_size=3, workers=0), expected)


def test_nothing_is_kept_beyond_the_budget_or_without_decoding(photos, array_images):
    needed = 6 * 16 * 16 * 3 + 6
    assert FittedImages(photos, PHOTO, budget=needed).is_kept
    assert not FittedImages(photos, PHOTO, budget=needed - 1).is_kept
    assert not FittedImages(array_images(), GRAY, budget=10**9).is_kept


@pytest.fixture
def spawned():
    """Loading processes are started afresh, as by default on Python 3.14 and on macOS."""
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(method, force=True)


OWN_DATA = """
import numpy as np

class Squares:
    classes = ("dark", "light")

    def __init__(self, split):
        self.labels = np.arange(6) % 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.full((8, 8), 40 * index, np.uint8), self.labels[index]

class Hidden(Squares):
    def __init__(self, split):
        super().__init__(split)
        self.change = lambda image: image
"""


def test_processes_that_are_not_forked_load_data_of_a_users_file(tmp_path, spawned):
    (tmp_path / "own_data.py").write_text(OWN_DATA)
    images = limited(load_custom(f"{tmp_path}/own_data.py:Squares", "train", None), 4)

    assert same(batches(images, augment=[], batch_size=2, workers=1), batches(images, augment=[], batch_size=2))


def test_data_that_cannot_be_pickled_is_named(tmp_path, spawned):
    (tmp_path / "own_data.py").write_text(OWN_DATA)
    images = load_custom(f"{tmp_path}/own_data.py:Hidden", "train", None)

    with pytest.raises(UsageError, match=r"processes which load it .*<lambda>") as caught:
        batches(images, augment=[], batch_size=2, workers=1)
    assert "data.workers=0" in (caught.value.hint or "")


def test_processes_that_are_not_forked_share_kept_images(photos, spawned):
    kept = FittedImages(photos, PHOTO, budget=10**6)
    expected = batches(photos, PHOTO, [], batch_size=3)

    assert same(batches(kept, PHOTO, [], batch_size=3, workers=1), expected)
    for path in photos.paths:
        path.unlink()
    assert same(batches(kept, PHOTO, [], batch_size=3), expected)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (
            "def data(split):\n    return np.zeros((2, 4, 4), np.uint8), ['cat', 'dog']\n",
            "labels to be numbers of classes",
        ),
        ("def data(root):\n    return np.zeros((2, 4, 4), np.uint8), [0, 1]\n", "to have a parameter split"),
    ],
)
def test_own_data_of_another_form_are_one_clear_error(tmp_path, source, part):
    (tmp_path / "own_data.py").write_text(f"import numpy as np\n\n\n{source}")
    with pytest.raises(UsageError, match=part):
        load_custom(f"{tmp_path}/own_data.py:data", "train", None)


def turned_jpeg() -> bytes:
    """A photo of a camera that was held upright: 9 x 5 pixels, and an orientation that says so."""
    pixels = np.random.default_rng(0).integers(256, size=(5, 9, 3), dtype=np.uint8)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("convert", [lambda image: image, lambda image: image.convert("RGB")])
@pytest.mark.parametrize("limit", [None, 1])
def test_own_photos_are_turned_as_the_server_turns_them(convert, limit):
    """The reference is Pillow's own `ImageOps.exif_transpose`, and what the server makes of the file."""
    content = turned_jpeg()
    own = CallableImages(
        "own", "train", ("a",), np.zeros(2, np.int64), lambda index: convert(Image.open(io.BytesIO(content)))
    )
    image = np.asarray(limited(own, limit).image(0).convert("RGB"))
    assert image.shape == (9, 5, 3)
    assert np.array_equal(image, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))
    assert np.array_equal(image, np.asarray(decode_image(content)))


@pytest.mark.parametrize(
    ("names", "part"), [(("a", "b", "a"), "'a' more than once"), (("a", " ", "b"), "an empty one")]
)
def test_classes_without_names_of_their_own_are_refused(names, part):
    with pytest.raises(DataError, match=part):
        ArrayImages("own", "train", names, np.zeros(2, np.int64), np.zeros((2, 4, 4), np.uint8))
