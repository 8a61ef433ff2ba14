"""Signatures as data: free sizes, names, JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.signature import (
    FreeSize,
    Signature,
    TensorSpec,
    factors_of,
    from_json,
    size_at,
    size_of,
    to_json,
)

IMAGES = Signature(
    (TensorSpec("left", "float32", (3, "8*height", "width")), TensorSpec("ids", "int64", ("width+1",))),
    (TensorSpec("mask", "float32", (1, "4*height", "width-1")),),
    free={"height": FreeSize(4), "width": FreeSize(20, 2, 30)},
)
TEXT = Signature(
    (TensorSpec("input_ids", "int64", ("length",)), TensorSpec("keys", "float32", (4, "past", 8))),
    (TensorSpec("logits", "float32", ("length", 50)), TensorSpec("keys_after", "float32", (4, "past+length", 8))),
    (("keys", "keys_after"),),
    {"length": FreeSize(7, 1, 24), "past": FreeSize(5, 0, 24)},
)


@given(st.integers(1, 99), st.integers(-9, 9), st.integers(1, 1000))
def test_a_size_is_what_its_name_says(factor: int, offset: int, height: int) -> None:
    size = size_of({"height": factor}, offset)
    assert size_at(size, {"height": height, "width": 7}) == factor * height + offset
    assert factors_of(size) == ({"height": factor}, offset)
    both = size_of({"height": factor, "width": 2}, offset)
    assert size_at(both, {"height": height, "width": 7}) == factor * height + 14 + offset
    assert factors_of(both) == ({"height": factor, "width": 2}, offset)
    assert size_at(factor, {}) == factor
    assert factors_of(factor) == ({}, factor)


def test_names_of_sizes_are_short() -> None:
    assert [size_of({"h": factor}, offset) for factor, offset in ((1, 0), (8, 0), (2, -1), (1, 3))] == [
        "h", "8*h", "2*h-1", "h+3",
    ]  # fmt: skip
    assert size_of({"past": 1, "length": 1}, -1) == "past+length-1"
    for unknown in ("h//2", "h w", "2h", ""):
        with pytest.raises(KeyError):
            size_at(unknown, {"h": 4})


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
    (_, height, width), (ids,) = IMAGES.input_shapes(IMAGES.sizes(1))
    assert (height, width, ids) == (64, 29, 30)
    both = Signature((), (), free={"height": FreeSize(16), "width": FreeSize(16)})
    assert both.sizes() == {"height": 16, "width": 16}
    assert both.sizes(1) == {"height": 32, "width": 33}


def test_sizes_of_states_fill_a_context_together() -> None:
    assert (TEXT.context, IMAGES.context) == (24, None)
    trials = TEXT.trials()
    assert trials[0] == {"length": 7, "past": 5}
    assert trials[2:] == [{"length": 1, "past": 0}, {"length": 1, "past": trials[1]["past"]}]
    for sizes in (*trials, TEXT.sizes(2), TEXT.sizes(3)):
        assert sum(sizes.values()) <= 24
        assert sizes["length"] >= 1
    assert all(TEXT.sizes(number)["past"] >= 2 for number in range(4))


@pytest.mark.parametrize("signature", [IMAGES, TEXT])
def test_json_keeps_everything(signature: Signature) -> None:
    assert from_json(json.loads(json.dumps(to_json(signature)))) == signature
