import numpy as np
from sklearn.datasets import load_digits as sklearn_digits

from cpt_deploy.data import load_images


def test_splits_are_disjoint_complete_and_balanced():
    train, test = load_images("digits", split="train"), load_images("digits", split="test")
    original = sklearn_digits()

    assert (len(train), len(test)) == (1442, 355)
    pixels = np.concatenate([train.pixels, test.pixels]).reshape(1797, -1)
    expected = np.rint(original.images * 255 / 16).astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, expected))
    for label in range(10):
        share = np.mean(test.labels == label) * len(test) / np.sum(original.target == label)
        assert 0.19 < share < 0.2001


def test_digits_are_the_same_every_time():
    assert load_images("digits", split="test").digest() == load_images("digits", split="test").digest()


def test_gray_values_use_the_whole_range():
    train = load_images("digits", split="train")

    assert (train.pixels.min(), train.pixels.max()) == (0, 255)
    assert len(np.unique(train.pixels)) == 17
