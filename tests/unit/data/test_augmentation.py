import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.data import build_augmentations
from cpt_deploy.data.augmentation import augmentations
from cpt_deploy.errors import UsageError


def one(name, size=(8, 8), **parameters):
    return build_augmentations([(name, parameters)], size)[0]


def pixels(count, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(augmentations))
def test_every_augmentation_keeps_type_and_size(name, channels):
    augmentation = one(name, size=(16, 12))
    image = pixels(1, channels, (30, 20) if augmentation.sizes else (16, 12))[0]

    varied = augmentation.one(image)

    assert varied.dtype == torch.uint8
    assert varied.shape == (channels, 16, 12)


@given(
    count=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    padding=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
def test_batched_crop_takes_a_window_of_each_padded_image(count, channels, size, padding, seed):
    images = pixels(count, channels, size, seed)
    torch.manual_seed(seed)

    cropped = one("random_crop", size=size, padding=padding).batch(images, slice(None), count)

    padded = torch.nn.functional.pad(images, (padding,) * 4)
    for image, result in zip(padded, cropped, strict=True):
        windows = [
            image[:, top : top + size[0], left : left + size[1]]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        assert any(torch.equal(result, window) for window in windows)


def test_batched_crop_reaches_every_window_about_equally_often():
    image = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4)
    torch.manual_seed(0)

    cropped = one("random_crop", size=(4, 4), padding=1).batch(image.expand(9000, 1, 4, 4), slice(None), 9000)

    _, counts = torch.unique(cropped.reshape(9000, -1), dim=0, return_counts=True)
    assert len(counts) == 9
    assert counts.min() > 850
    assert counts.max() < 1150


def test_batched_flip_mirrors_about_half_and_changes_nothing_in_place():
    images = pixels(4000, 1, (2, 3))
    before = images.clone()
    torch.manual_seed(0)

    flipped = one("hflip").batch(images, slice(None), 4000)

    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    unchanged = (flipped == images).flatten(1).all(1)
    assert torch.all(mirrored | unchanged)
    assert 1800 < int((mirrored & ~unchanged).sum()) < 2200
    assert torch.equal(images, before)


@pytest.mark.parametrize(("p", "expected"), [(0.0, False), (1.0, True)])
def test_flip_probability_is_meant(p, expected):
    images = pixels(10, 3, (2, 3))

    assert torch.equal(one("hflip", p=p).batch(images, slice(None), 10), images.flip(-1) if expected else images)


def test_lists_from_a_recipe_are_accepted():
    one("color_jitter", brightness=[0.5, 1.5], hue=0.1)
    one("affine", degrees=[-5, 5], translate=[0.1, 0.1], scale=[0.9, 1.1])
    one("random_resized_crop", scale=[0.5, 1.0])


@pytest.mark.parametrize(
    ("name", "parameters", "reason", "hint"),
    [
        ("random_crp", {}, "known augmentation", "random_crop"),
        ("random_crop", {"pading": 2}, "'pading'", "padding"),
        ("random_crop", {"padding": -1}, "fit augmentation 'random_crop'", None),
        ("random_crop", {"padding": "much"}, "fit augmentation 'random_crop'", None),
        ("random_crop", {"fill": "red"}, "fit augmentation 'random_crop'", None),
        ("random_crop", {"fill": 300}, "fit augmentation 'random_crop'", None),
        ("random_crop", {"padding": True}, "fit augmentation 'random_crop'", None),
        ("randaugment", {"magnitude": 31}, "fit augmentation 'randaugment'", None),
        ("hflip", {"p": 2}, "fit augmentation 'hflip'", None),
        ("color_jitter", {"brightness": -1}, "fit augmentation 'color_jitter'", None),
        ("autoaugment", {"policy": "best"}, "fit augmentation 'autoaugment'", None),
    ],
)
def test_augmentation_that_cannot_be_built_is_a_usage_error(name, parameters, reason, hint):
    with pytest.raises(UsageError, match=reason) as caught:
        one(name, **parameters)
    assert hint is None or hint in caught.value.hint


def test_users_own_augmentation(tmp_path, monkeypatch):
    (tmp_path / "own_augmentation.py").write_text("def darker(by):\n    return lambda image: image // by\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    image = pixels(1, 3, (4, 4))[0]

    assert torch.equal(one("own_augmentation:darker", by=2).one(image), image // 2)


@pytest.mark.parametrize("name", sorted(augmentations.names()))
def test_every_augmentation_reaches_a_process_that_is_not_a_copy_of_this_one(name):
    """Where processes are spawned, or forked from a server as in Python 3.14, what they work with is pickled."""
    (step,) = build_augmentations([(name, {})], (8, 8))
    again = pickle.loads(pickle.dumps(step))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    results = []
    for augmentation in (step, again):
        torch.manual_seed(0)
        results.append(augmentation.one(images[0]))
        if augmentation.batch is not None:
            results.append(augmentation.batch(images, slice(0, 4), 4))
    half = len(results) // 2
    assert all(torch.equal(a, b) for a, b in zip(results[:half], results[half:], strict=True))
