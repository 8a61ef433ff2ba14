"""Inputs of a signature: what is checked, and the states that begin and continue a text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.bundle import OnnxRuntimeModel, initial_states, next_states
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.signature import FreeSize, Signature, TensorSpec

TEXT = Signature(
    (
        TensorSpec("input_ids", "int64", ("length",)),
        TensorSpec("mask", "float32", ("past+length",)),
        TensorSpec("keys", "float32", (2, "past", 3)),
        TensorSpec("mean", "float32", (4,)),
    ),
    (),
    (("keys", "keys_after"), ("mean", "mean_after")),
    {"length": FreeSize(3, most=8), "past": FreeSize(2, least=0, most=8)},
)


def call(rows, length, past=None):
    inputs = {
        "input_ids": np.zeros((rows, length), np.int64),
        "mask": np.ones((rows, length + (past or 0)), np.float32),
    }
    return inputs if past is None else inputs | {"keys": np.ones((rows, 2, past, 3), np.float32)}


@given(st.integers(1, 5), st.integers(1, 8))
def test_states_begin_as_zeros_and_empty_where_they_grow(rows, length):
    found = checked_inputs(TEXT, call(rows, length))
    assert list(found) != list(call(rows, length))
    assert found["keys"].shape == (rows, 2, 0, 3)
    np.testing.assert_array_equal(found["mean"], np.zeros((rows, 4), np.float32), strict=True)
    given_keys = initial_states(TEXT, {"N": rows, "past": 2})
    assert given_keys["keys"].shape == (rows, 2, 2, 3)
    assert next_states(TEXT, {"keys_after": 1, "mean_after": 2, "logits": 3}) == {"keys": 1, "mean": 2}


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (call(2, 3) | {"other": np.zeros((2, 1))}, "but got input_ids, mask, other"),
        ({"mask": np.ones((2, 3), np.float32)}, "inputs input_ids, mask, but got mask"),
        ({}, "but got none"),
        (call(2, 3) | {"input_ids": np.zeros((2, 3), np.int32)}, r"int64 \(N, length\)"),
        (call(2, 3) | {"input_ids": np.zeros(2, np.int64)}, r"int64 \(N, length\), but got int64 \(2,\)"),
        (call(2, 3, 1) | {"keys": np.ones((2, 2, 1, 4), np.float32)}, r"float32 \(N, 2, past, 3\)"),
        (call(2, 3, 1) | {"keys": np.ones((1, 2, 1, 3), np.float32)}, "where N is 2 in other inputs"),
        (call(2, 9), "where length is at most 8 and at least 1"),
        (call(2, 0), "where length is at most 8 and at least 1"),
        (call(2, 4, 5), "at most 8 of length \\+ past, the model's context, but got 9"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_named(inputs, reason):
    with pytest.raises(ValueError, match=reason):
        checked_inputs(TEXT, inputs)


def test_a_file_has_the_signature_that_it_declares(shared_bundle):
    assert OnnxRuntimeModel(shared_bundle.onnx_path).signature == shared_bundle.signature
