import numpy as np
import pytest
from PIL import Image

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data import (
    ArrayImages,
    FileImages,
    default_preprocessing,
    input_settings,
    load_images,
    resolve_preprocessing,
)
from cpt_deploy.errors import RecipeError
from cpt_deploy.recipe import InputSettings

GRAY = Preprocessing(1, (8, 8), mean=(0.3,), std=(0.4,))
PHOTO = Preprocessing(3, (224, 224), mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), resize=256)


def test_known_set_has_its_published_values():
    preprocessing = default_preprocessing(load_images("digits", split="train"))

    assert (preprocessing.channels, preprocessing.size) == (1, (8, 8))


def test_published_values_of_digits_are_those_of_its_training_images():
    images = load_images("digits", split="train")
    preprocessing = default_preprocessing(images)

    assert preprocessing.mean[0] == pytest.approx(images.pixels.mean() / 255, abs=1e-4)
    assert preprocessing.std[0] == pytest.approx(images.pixels.std() / 255, abs=1e-4)


def test_own_data_that_are_named_like_a_known_set_have_their_own_values(tmp_path):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "digits" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (64, 48)).save(folder / "a.png")
    photos = default_preprocessing(load_images(tmp_path / "digits", split="train"))
    assert (photos.channels, photos.size) == (3, (48, 64))
    pixels = np.full((4, 28, 28), 51, np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=pixels, y_train=[0, 1, 0, 1], x_test=pixels, y_test=[0, 1, 0, 1])
    arrays = default_preprocessing(load_images(tmp_path / "digits.npz", split="train"))
    assert (arrays.size, arrays.mean) == ((28, 28), (0.2,))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_normalised_by_their_own_statistics(array_images, channels):
    images = array_images(channels=channels, size=(5, 7))

    preprocessing = default_preprocessing(images)

    values = images.pixels.reshape(-1, channels) / 255
    assert preprocessing.size == (5, 7)
    assert preprocessing.mean == pytest.approx(values.mean(axis=0), abs=1e-4)
    assert preprocessing.std == pytest.approx(values.std(axis=0), abs=1e-4)


def test_constant_images_do_not_divide_by_zero():
    images = ArrayImages("flat", "train", ("a",), np.zeros(3, np.int64), np.full((3, 4, 4), 9, np.uint8))

    assert np.isfinite(default_preprocessing(images).apply(images.image(0))).all()


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 400), ((224, 224), 256)), ((64, 60), ((60, 64), None))], ids=["photo", "small"]
)
def test_files_are_taken_as_photographs_unless_small(tmp_path, size, expected):
    Image.new("RGB", size).save(tmp_path / "a.png")
    images = FileImages("x", "train", ("a",), np.zeros(1, np.int64), (tmp_path / "a.png",))

    preprocessing = default_preprocessing(images)

    assert (preprocessing.size, preprocessing.resize) == expected


def test_open_settings_come_from_the_data():
    assert resolve_preprocessing(InputSettings(), GRAY) == GRAY


def test_resolved_settings_resolve_to_themselves():
    for preprocessing in (GRAY, PHOTO):
        assert resolve_preprocessing(input_settings(preprocessing), GRAY) == preprocessing


def test_resize_keeps_its_proportion_to_another_size():
    assert resolve_preprocessing(InputSettings(size=(112, 112)), PHOTO).resize == 128


def test_other_channels_repeat_or_average_the_statistics():
    assert resolve_preprocessing(InputSettings(channels=3), GRAY).mean == (0.3, 0.3, 0.3)
    assert resolve_preprocessing(InputSettings(channels=1), PHOTO).std == (0.2,)


def test_mean_of_the_wrong_length_is_a_recipe_error():
    with pytest.raises(RecipeError, match=r"data\.input"):
        resolve_preprocessing(InputSettings(mean=(0.5, 0.5, 0.5)), GRAY)
