import hashlib
import pickle

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from cpt_deploy.data import load_images
from cpt_deploy.errors import DataError


class Boom:
    """Unpickling this creates a file, which must never happen before the checksum agrees."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A small CIFAR-10 in the original layout, whose checksums are the expected ones."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    contents = {"batches.meta": {"label_names": [f"class{index}" for index in range(10)]}}
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        data = generator.integers(256, size=(4, 3072), dtype=np.uint8)
        contents[name] = {"data": data, "labels": [int(label) for label in generator.integers(10, size=4)]}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return folder, contents


@pytest.mark.parametrize("above", [True, False], ids=["folder that holds it", "folder itself"])
def test_original_layout_is_read(cifar10, above):
    folder, contents = cifar10

    train, test = (
        load_images("cifar10", split=split, root=folder.parent if above else folder) for split in ("train", "test")
    )

    assert (train.pixels.shape, test.pixels.shape) == ((20, 32, 32, 3), (4, 32, 32, 3))
    planes = contents["data_batch_2"]["data"][1].reshape(3, 32, 32)
    assert np.array_equal(train.pixels[5], planes.transpose(1, 2, 0))
    assert train.labels[4:8].tolist() == contents["data_batch_2"]["labels"]
    assert train.classes[3] == "class3"


def test_path_to_the_layout_is_recognised(cifar10):
    folder, _ = cifar10

    assert load_images(folder.parent, split="test").name == "cifar10"


def test_missing_batches_are_named(cifar10):
    folder, _ = cifar10
    (folder / "data_batch_3").unlink()
    (folder / "test_batch").unlink()

    with pytest.raises(DataError, match="data_batch_3 and test_batch are missing") as caught:
        load_images("cifar10", split="train", root=folder.parent)
    assert "cifar-10-batches-py" in caught.value.hint


def test_damaged_batch_is_never_unpickled(cifar10, tmp_path):
    folder, _ = cifar10
    mark = tmp_path / "unpickled"
    (folder / "data_batch_1").write_bytes(pickle.dumps(Boom(mark)))

    with pytest.raises(DataError, match=r"data_batch_1 to be the original file .* damaged"):
        load_images("cifar10", split="train", root=folder.parent)
    assert not mark.exists()


def test_cifar100_is_looked_for_by_its_own_files(tmp_path):
    (tmp_path / CIFAR100.base_folder).mkdir()
    (tmp_path / CIFAR100.base_folder / "meta").write_bytes(b"")

    with pytest.raises(DataError, match="train and test are missing"):
        load_images("cifar100", split="train", root=tmp_path)


def test_incomplete_original_is_refused_with_what_is_missing(real_data):
    folder = real_data("cifar10-original-first4000")

    with pytest.raises(DataError, match="data_batch_2, data_batch_3, data_batch_4, data_batch_5 and test_batch are"):
        load_images(folder, split="train")
