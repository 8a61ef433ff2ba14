"""Signatures as data: free sizes, names, JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.signature import (
    FreeSize,
    Signature,
    TensorSpec,
    free_name,
    from_json,
    size_at,
    size_of,
    to_json,
)

IMAGES = Signature(
    (TensorSpec("left", "float32", (3, "8*height", "width")), TensorSpec("ids", "int64", ("width+1",))),
    (TensorSpec("mask", "float32", (1, "4*height", "width-1")),),
    (("ids", "mask"),),
    {"height": FreeSize(4), "width": FreeSize(20, 2, 30)},
)


@given(st.integers(1, 99), st.integers(-9, 9), st.integers(1, 1000))
def test_a_size_is_what_its_name_says(factor: int, offset: int, height: int) -> None:
    size = size_of("height", factor, offset)
    assert size_at(size, {"height": height, "width": 7}) == factor * height + offset
    assert free_name(size) == "height"
    assert size_at(factor, {}) == factor
    assert free_name(factor) is None


def test_names_of_sizes_are_short() -> None:
    assert [size_of("h", *given) for given in ((1, 0), (8, 0), (2, -1), (1, 3))] == ["h", "8*h", "2*h-1", "h+3"]
    assert free_name("h//2") is None
    with pytest.raises(KeyError):
        size_at("h//2", {"h": 4})


@given(
    st.integers(1, 60).flatmap(
        lambda least: st.tuples(st.just(least), st.integers(least, 90), st.none() | st.integers(0, 50))
    ),
    st.integers(1, 3),
)
def test_other_sizes_lie_within_the_bounds_and_are_not_the_examples(given_size, number: int) -> None:
    least, example, above = given_size
    free = FreeSize(example, least, None if above is None else example + above)
    (size,) = Signature((), (), free={"x": free}).sizes(number).values()
    assert least <= size <= (free.most or size)
    assert size != example or (least, free.most) == (example, example) or number > 1


def test_shapes_follow_the_free_sizes_and_these_differ() -> None:
    assert IMAGES.input_shapes() == ((3, 32, 20), (21,))
    (_, height, width), (ids,) = IMAGES.input_shapes(1)
    assert (height, width, ids) == (64, 29, 30)
    both = Signature((), (), free={"height": FreeSize(16), "width": FreeSize(16)})
    assert both.sizes() == {"height": 16, "width": 16}
    assert both.sizes(1) == {"height": 32, "width": 33}


def test_json_keeps_everything() -> None:
    assert from_json(json.loads(json.dumps(to_json(IMAGES)))) == IMAGES
