import numpy as np
import pytest
from PIL import Image

from cpt_deploy.data import load_images
from cpt_deploy.errors import DataError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pets"
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (5 + index, 4), (label * 100, index, 0)).save(folder / split / name / f"{index}.png")
    return folder


def test_imagenet_layout_is_read_lazily(root):
    train, test = load_images(root, split="train"), load_images(root, split="test")

    assert (train.name, train.classes, len(train), len(test)) == ("pets", ("cat", "dog"), 6, 4)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.image(3).getpixel((0, 0)) == (100, 1, 0)
    assert np.asarray(train.image(2)).shape == (4, 7, 3)


def test_test_may_be_the_name_of_the_second_folder(root):
    (root / "val").rename(root / "test")

    assert len(load_images(root, split="test")) == 4


def test_other_files_are_not_images(root):
    (root / "train" / "cat" / "notes.txt").write_text("nothing")
    (root / "train" / ".cache").mkdir()

    assert len(load_images(root, split="train")) == 6


def test_classes_get_readable_names(root):
    (root / "class_names.tsv").write_text("dog\tDog, domestic\ncat\tCat\nbird\tBird\n")

    assert load_images(root, split="test").classes == ("Cat", "Dog, domestic")


def test_folder_with_the_name_of_a_test_split_is_a_test_set(root):
    assert len(load_images(root / "val", split="test")) == 4
    with pytest.raises(DataError, match="Expected train images"):
        load_images(root / "val", split="train")


def test_labels_follow_the_training_classes(root):
    for name in ("0.png", "1.png"):
        (root / "val" / "cat" / name).unlink()
    (root / "val" / "cat").rmdir()

    with pytest.raises(DataError, match="images of class 'cat'"):
        load_images(root, split="test")


def test_class_without_training_images_is_an_error(root):
    (root / "val" / "horse").mkdir()

    with pytest.raises(DataError, match="got others as well: horse"):
        load_images(root, split="test")


def test_empty_class_is_an_error(root):
    (root / "train" / "ape").mkdir()

    with pytest.raises(DataError, match="images of class 'ape'") as caught:
        load_images(root, split="train")
    assert ".jpg" in caught.value.hint


def test_flat_validation_folder_is_an_error(root):
    for path in (root / "val").iterdir():
        for image in path.iterdir():
            image.rename(root / "val" / f"{path.name}{image.name}")
        path.rmdir()

    with pytest.raises(DataError, match="a folder per class") as caught:
        load_images(root, split="test")
    assert "ROOT/val/<class>" in caught.value.hint


def test_real_photographs_decode(real_data):
    images = load_images(real_data("hymenoptera_data"), split="test")

    assert images.classes == ("ants", "bees")
    assert len(images) == 84
    assert all(images.image(index).mode == "RGB" for index in range(0, 84, 20))


def test_tiny_imagenet_has_its_names(real_data):
    images = load_images(real_data("tiny-imagenet-10"), split="train")

    assert len(images) == 5000
    assert images.classes[0] == "goldfish, Carassius auratus"


def test_class_names_that_are_no_text_are_one_clear_error(root):
    (root / "class_names.tsv").write_bytes("cat\tKätzchen\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"names of classes in UTF-8 in .*class_names\.tsv"):
        load_images(root, split="train")


def test_equal_readable_names_are_told_apart(root):
    (root / "class_names.tsv").write_text("cat\tcrane\ndog\tcrane\n", encoding="utf-8-sig")
    assert load_images(root, split="train").classes == ("crane (cat)", "crane (dog)")
    (root / "class_names.tsv").write_text("cat\t\ndog\tDog\n", encoding="utf-8-sig")
    assert load_images(root, split="train").classes == ("cat", "Dog")
