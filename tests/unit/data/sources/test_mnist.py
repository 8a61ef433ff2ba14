import gzip
import struct

import numpy as np
import pytest

from cpt_deploy.data import load_images
from cpt_deploy.errors import DataError


def idx(array):
    """The idx format, as its specification at yann.lecun.com/exdb/mnist describes it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(6, 28, 28), dtype=np.uint8)


LABELS = np.array([0, 9, 3, 3, 1, 5], np.uint8)


def write(folder, images, labels=LABELS, *, compressed=True, stem="train"):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx(array)
        name = f"{stem}-{kind}-ubyte" + (".gz" if compressed else "")
        (folder / name).write_bytes(gzip.compress(content) if compressed else content)


@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "unpacked"])
@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "raw", "."])
def test_idx_files_are_read_where_they_lie(tmp_path, images, layout, compressed):
    write(tmp_path / layout, images, compressed=compressed)

    found = load_images("fashion-mnist", split="train", root=tmp_path)

    assert np.array_equal(found.pixels, images)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.classes[9] == "Ankle boot"


def test_read_only_folder_will_do(tmp_path, images):
    write(tmp_path / "MNIST" / "raw", images, stem="t10k")
    for path in [*tmp_path.rglob("*"), tmp_path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(tmp_path.rglob("*"))

    found = load_images("mnist", split="test", root=tmp_path)

    assert len(found) == 6
    assert sorted(tmp_path.rglob("*")) == before
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)


def test_missing_set_is_one_line_with_where_and_how(no_data_folders):
    with pytest.raises(DataError) as caught:
        load_images("fashion-mnist", split="train")

    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    assert str(no_data_folders / "fashion-mnist") in str(caught.value)
    assert "CPT_DATA_DIR" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_one_missing_file_is_named(tmp_path, images):
    write(tmp_path, images)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()

    with pytest.raises(DataError, match=r"2 files .* but train-labels-idx1-ubyte.gz is missing"):
        load_images("mnist", split="train", root=tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "whole gzip file"),
        (lambda content: content[:40] + bytes([content[40] ^ 255]) + content[41:], "whole gzip file"),
        (lambda content: b"<html>not found</html>", "whole gzip file"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), "damaged"),
        (lambda content: gzip.compress(b"\0\0\x0d\3" + bytes(100)), "idx file of bytes"),
        (lambda content: gzip.compress(b""), "idx file of bytes"),
        (lambda content: gzip.compress(idx(np.zeros((2, 28, 28), np.uint8))), "as many labels as images"),
        (lambda content: gzip.compress(idx(np.zeros(6, np.uint8))), "axes"),
    ],
    ids=["truncated", "flipped", "no gzip", "short", "floats", "empty", "fewer images", "labels twice"],
)
def test_damaged_file_is_a_data_error(tmp_path, images, damage, reason):
    write(tmp_path, images)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DataError, match=reason):
        load_images("mnist", split="train", root=tmp_path)


def test_fashion_mnist_is_complete(real_data):
    folder = real_data("fashion-mnist")

    train, test = (load_images("fashion-mnist", split=split, root=folder) for split in ("train", "test"))

    assert (train.pixels.shape, test.pixels.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert train.pixels.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
