import sys
import urllib.error

import numpy as np
import pytest
import torchvision

from cpt_deploy.data import ArrayImages, datasets, fetch_dataset, load_images
from cpt_deploy.errors import DataError, UsageError


def test_known_names():
    assert datasets.names() == ["cifar10", "cifar100", "digits", "fashion-mnist", "mnist"]
    assert datasets.names("cifar*") == ["cifar10", "cifar100"]


@pytest.mark.parametrize("name", datasets.names())
def test_info_is_complete(name):
    info = datasets.get(name)

    assert info.name == name
    assert info.preprocessing.channels == len(info.preprocessing.mean)
    assert info.summary
    assert info.obtain


def test_unknown_name_suggests_near_ones(no_data_folders):
    with pytest.raises(UsageError, match="known data set") as caught:
        load_images("fashion-mnits", split="train")
    assert "did you mean fashion-mnist" in caught.value.hint


@pytest.mark.parametrize("path", ["/no/such/folder", "some/where", "images.npz"])
def test_wrong_path_is_a_data_error(no_data_folders, path):
    with pytest.raises(DataError, match="found nothing there"):
        load_images(path, split="train")


def test_file_of_another_kind_is_a_data_error(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a,b\n")

    with pytest.raises(DataError, match=r"folder or an \.npz file"):
        load_images(path, split="train")


def test_name_of_a_folder_in_the_data_directory_will_do(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "train.npz", images=np.zeros((2, 3, 3), np.uint8), labels=[0, 1])
    monkeypatch.setenv("CPT_DATA_DIR", str(tmp_path))

    assert len(load_images("mine", split="train")) == 2


def test_environment_goes_before_the_cache(tmp_path, monkeypatch, no_data_folders):
    monkeypatch.setenv("CPT_DATA_DIR", str(tmp_path / "data"))

    with pytest.raises(DataError) as caught:
        load_images("mnist", split="train")

    message = str(caught.value)
    assert message.index(str(tmp_path / "data" / "mnist")) < message.index(str(no_data_folders / "mnist"))


USER_MODULE = """
import numpy as np
import torch
from PIL import Image
from cpt_deploy.data import ArrayImages

def arrays(split):
    return np.full((4, 3, 3), 7, np.uint8), [0, 1, 0, 1]
arrays.classes = ["no", "yes"]

def image_set(split, root):
    return ArrayImages("own", split, ("a",), np.zeros(2, np.int64), np.zeros((2, 3, 3), np.uint8))

class Items:
    classes = ("zero", "one", "two")
    def __init__(self, split, root=None):
        self.split, self.root = split, root
    def __len__(self):
        return 3
    def __getitem__(self, index):
        return Image.new("RGB", (4, 4), (index, 0, 0)), index

class Tensors(Items):
    targets = [0, 1, 2]
    def __getitem__(self, index):
        return torch.full((3, 4, 5), index, dtype=torch.uint8), index

class Dictionaries(Items):
    def __getitem__(self, index):
        return {"image": Image.new("RGB", (4, 4)), "label": index}

class ChannelsFirst(Tensors):
    def __getitem__(self, index):
        return np.zeros((3, 4, 5), np.uint8), index

class Floats(Tensors):
    def __getitem__(self, index):
        return torch.zeros(3, 4, 5), index

number = 3

def nothing(split):
    return None
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "own_images.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_images"
    sys.modules.pop("own_images", None)


def test_users_arrays_get_their_class_names(user_module):
    images = load_images(f"{user_module}:arrays", split="train")

    assert isinstance(images, ArrayImages)
    assert images.classes == ("no", "yes")


def test_users_image_set_is_taken_as_it_is(user_module, tmp_path):
    assert load_images(f"{user_module}:image_set", split="test", root=tmp_path).name == "own"


@pytest.mark.parametrize("name", ["Items", "Tensors"])
def test_users_items_are_wrapped(user_module, name):
    images = load_images(f"{user_module}:{name}", split="test")

    assert images.labels.tolist() == [0, 1, 2]
    assert images.classes == ("zero", "one", "two")
    assert np.asarray(images.image(2))[0, 0, 0] == 2
    assert len(images.digest()) == 64


def test_normalised_tensors_are_refused_with_the_reason(user_module):
    images = load_images(f"{user_module}:Floats", split="test")

    with pytest.raises(DataError, match="uint8"):
        images.image(0)


def test_items_that_are_no_pairs_and_images_of_another_shape_are_named(user_module):
    with pytest.raises(UsageError, match=r"items \(image, label\)"):
        load_images(f"{user_module}:Dictionaries", split="test")
    images = load_images(f"{user_module}:ChannelsFirst", split="test")
    with pytest.raises(DataError, match=r"image 1 of .* but got \(3, 4, 5\)"):
        images.image(1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("number", "callable"), ("nothing", "give a data set"), ("missing", "to have 'missing'")],
)
def test_import_path_to_something_else_is_refused(user_module, name, reason):
    with pytest.raises(UsageError, match=reason):
        load_images(f"{user_module}:{name}", split="train")


def test_fetching_downloads_into_the_cache(monkeypatch, no_data_folders):
    calls = []
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: calls.append((root, download)))

    assert fetch_dataset("mnist") == no_data_folders / "mnist"
    assert calls == [(no_data_folders / "mnist", True)]


def test_failed_download_is_a_data_error(monkeypatch, tmp_path):
    def fail(root, download):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)

    with pytest.raises(DataError, match=r"download cifar10 .* no network"):
        fetch_dataset("cifar10", tmp_path)


def test_digits_cannot_be_fetched():
    with pytest.raises(UsageError, match="can be downloaded"):
        fetch_dataset("digits")


def test_nothing_is_downloaded_by_looking(monkeypatch, no_data_folders):
    def fail(*args, **kwargs):
        raise AssertionError("downloaded")

    monkeypatch.setattr("urllib.request.urlopen", fail)

    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(DataError):
            load_images(name, split="train")
