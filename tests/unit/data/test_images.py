import hashlib

import numpy as np
import pytest
from PIL import Image

from cpt_deploy.data import ArrayImages, FileImages
from cpt_deploy.data.images import CallableImages
from cpt_deploy.errors import DataError

CLASSES = ("a", "b")
LABELS = np.array([0, 1, 1])


def test_digest_changes_with_pixels_labels_and_class_names():
    pixels = np.zeros((3, 2, 2), np.uint8)
    changed = pixels.copy()
    changed[2, 1, 1] = 1
    digests = {
        ArrayImages("x", "train", CLASSES, LABELS, pixels).digest(),
        ArrayImages("x", "train", CLASSES, LABELS, changed).digest(),
        ArrayImages("x", "train", CLASSES, LABELS[::-1].copy(), pixels).digest(),
        ArrayImages("x", "train", ("a", "c"), LABELS, pixels).digest(),
        ArrayImages("x", "train", CLASSES, LABELS, pixels.reshape(3, 1, 4)).digest(),
    }

    assert len(digests) == 5


def test_digest_does_not_depend_on_name_split_or_memory_layout():
    pixels = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    strided = np.asfortranarray(pixels)

    assert (
        ArrayImages("x", "train", CLASSES, LABELS, pixels).digest()
        == ArrayImages("y", "test", CLASSES, LABELS, strided).digest()
    )


def test_digest_of_files_is_that_of_their_bytes(tmp_path):
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.png")
        Image.new("L", (2, 2), index).save(paths[-1])
    images = FileImages("x", "train", CLASSES, LABELS, tuple(paths))

    expected = hashlib.sha256(b"a\nb" + LABELS.astype("<i8").tobytes())
    for path in paths:
        expected.update(path.read_bytes())
    assert images.digest() == expected.hexdigest()


@pytest.mark.parametrize(
    ("pixels", "labels", "reason"),
    [
        (np.zeros((3, 2, 2), np.float32), LABELS, "uint8"),
        (np.zeros((3, 2, 2, 4), np.uint8), LABELS, "uint8"),
        (np.zeros((4, 2, 2), np.uint8), LABELS, "as many labels as images"),
        (np.zeros((0, 2, 2), np.uint8), LABELS[:0], "to have images"),
        (np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 2]), r"0\.\.1, but got 0\.\.2"),
        (np.zeros((3, 2, 2), np.uint8), np.array([-1, 0, 1]), r"but got -1\.\.1"),
    ],
    ids=["float", "four channels", "too few labels", "empty", "label too high", "label negative"],
)
def test_images_that_make_no_data_set_are_refused(pixels, labels, reason):
    with pytest.raises(DataError, match=reason):
        ArrayImages("x", "train", CLASSES, labels, pixels)


def test_broken_file_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    images = FileImages("x", "train", CLASSES, LABELS, (path, path, path))

    with pytest.raises(DataError, match=r"broken\.jpg") as caught:
        images.image(0)
    assert "\n" not in str(caught.value)


def test_whatever_a_users_data_set_raises_names_the_image():
    def load(index):
        raise KeyError("row")

    images = CallableImages("mine:data", "train", CLASSES, LABELS, load)

    with pytest.raises(DataError, match=r"mine:data \(train\) to give image 2, but got KeyError: 'row'"):
        images.image(2)
