import io

import numpy as np
import pytest
from PIL import Image

from cpt_deploy.data import load_images
from cpt_deploy.errors import DataError

PIXELS = np.random.default_rng(0).integers(256, size=(5, 6, 7, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0, 1], np.uint8)


def jpeg_arrays(count=4, size=(8, 8)):
    parts = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", size, (60 * index, 10, 200)).save(buffer, "JPEG")
        parts.append(buffer.getvalue())
    offset = np.cumsum([0, *map(len, parts)])
    return {
        "jpeg": np.frombuffer(b"".join(parts), np.uint8),
        "offset": offset,
        "label": np.arange(count, dtype=np.uint8) % 2,
    }


@pytest.fixture
def root(tmp_path):
    np.savez(tmp_path / "train.npz", images=PIXELS, labels=LABELS)
    np.savez(tmp_path / "test_0-2.npz", images=PIXELS[:3], labels=LABELS[:3])
    np.savez(tmp_path / "test_3-4.npz", images=PIXELS[3:], labels=LABELS[3:])
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


def test_arrays_are_read_and_parts_are_joined(root):
    train, test = load_images(root, split="train"), load_images(root, split="test")

    assert np.array_equal(train.pixels, PIXELS)
    assert np.array_equal(test.pixels, PIXELS)
    assert test.labels.tolist() == LABELS.tolist()
    assert train.classes == ("red", "green", "blue")


@pytest.mark.parametrize(
    "labels",
    [LABELS + 0.5, np.array(["red", "green", "red", "blue", "red"]), LABELS.astype("datetime64[D]"), LABELS + 1j],
)
def test_labels_that_are_no_numbers_of_classes_are_refused(root, labels):
    np.savez(root / "train.npz", images=PIXELS, labels=labels)

    with pytest.raises(DataError, match=f"numbers of classes from 0 on, but got {labels.dtype}".replace("[", r"\[")):
        load_images(root, split="train")


def test_whole_numbers_are_labels_whatever_their_type(root):
    np.savez(root / "train.npz", images=PIXELS, labels=LABELS.astype(np.float64))

    assert load_images(root, split="train").labels.tolist() == LABELS.tolist()


def test_a_number_is_no_images_and_real_offsets_are_damaged(root):
    np.savez(root / "train.npz", images=np.uint8(3), labels=LABELS)
    with pytest.raises(DataError, match="a single number"):
        load_images(root, split="train")
    arrays = jpeg_arrays()
    np.savez(root / "train.npz", **{**arrays, "offset": arrays["offset"].astype(float)})
    with pytest.raises(DataError, match="Expected offsets"):
        load_images(root, split="train")


def test_classes_are_numbered_without_names(root):
    (root / "classes.txt").unlink()

    assert load_images(root, split="train").classes == ("0", "1", "2")


def test_gray_images_may_have_an_axis_for_the_channel(tmp_path):
    np.savez(tmp_path / "train.npz", images=PIXELS[..., :1], labels=LABELS)

    assert load_images(tmp_path, split="train").pixels.shape == (5, 6, 7)


def test_jpeg_bytes_are_decoded(tmp_path):
    np.savez(tmp_path / "train.npz", **jpeg_arrays())

    images = load_images(tmp_path, split="train")

    assert images.pixels.shape == (4, 8, 8, 3)
    assert images.labels.tolist() == [0, 1, 0, 1]
    assert np.abs(images.pixels[3, 4, 4].astype(int) - [180, 10, 200]).max() <= 3


def test_one_file_with_both_splits(tmp_path):
    path = tmp_path / "all.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:2], y_test=LABELS[:2])

    assert len(load_images(path, split="train")) == 5
    assert len(load_images(path, split="test")) == 2


def test_one_set_alone_is_a_test_set_only(root):
    assert len(load_images(root / "train.npz", split="test")) == 5
    with pytest.raises(DataError, match="x_train, y_train") as caught:
        load_images(root / "train.npz", split="train")
    assert "kept apart" in caught.value.hint


def test_missing_split_is_an_error(root):
    (root / "train.npz").unlink()

    with pytest.raises(DataError, match=r"train\*\.npz"):
        load_images(root, split="train")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": PIXELS}, "Expected 'labels'"),
        ({"labels": LABELS}, "Expected 'images'"),
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "uint8"),
        ({"images": PIXELS, "labels": LABELS[:2]}, "as many labels"),
        ({"images": PIXELS, "labels": np.array([0, 1, 2, 3, 9])}, "labels"),
        ({"images": np.array([{"a": 1}], dtype=object), "labels": LABELS}, "plain arrays"),
        ({**jpeg_arrays(), "offset": np.array([0, 5])}, "offsets"),
        ({**jpeg_arrays(), "jpeg": np.zeros_like(jpeg_arrays()["jpeg"])}, "image 0"),
    ],
    ids=["no labels", "no images", "floats", "few labels", "label without class", "pickled", "offsets", "no jpeg"],
)
def test_archive_that_is_no_data_set_is_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "train.npz", **arrays)
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")

    with pytest.raises(DataError, match=reason) as caught:
        load_images(tmp_path, split="train")
    assert "\n" not in str(caught.value)


def test_images_of_several_sizes_are_refused(tmp_path):
    np.savez(tmp_path / "test_a.npz", images=PIXELS, labels=LABELS)
    np.savez(tmp_path / "test_b.npz", images=PIXELS[:, :5], labels=LABELS)

    with pytest.raises(DataError, match="one size"):
        load_images(tmp_path, split="test")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95], ids=["empty", "header", "half", "end missing"])
def test_truncated_archive_is_a_data_error(root, keep):
    content = (root / "train.npz").read_bytes()
    (root / "train.npz").write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])

    with pytest.raises(DataError, match=r"whole \.npz file"):
        load_images(root, split="train")


def test_array_file_under_the_name_of_an_archive_is_a_data_error(tmp_path):
    with (tmp_path / "train.npz").open("wb") as file:
        np.save(file, PIXELS)

    with pytest.raises(DataError, match=r"whole \.npz file"):
        load_images(tmp_path, split="train")


def test_cifar_as_jpeg_bytes(real_data):
    images = load_images(real_data("cifar10-jpeg"), split="test")

    assert images.pixels.shape == (5000, 32, 32, 3)
    assert images.classes[:2] == ("airplane", "automobile")


def test_class_names_that_are_no_text_are_one_clear_error(root):
    (root / "classes.txt").write_bytes("rot\ngrün\nblau\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"names of classes in UTF-8 in .*classes\.txt"):
        load_images(root, split="train")
