"""The protocol's datatypes as bytes, compared with Triton's own client."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt_serving.oip.datatypes import DTYPES, from_binary, to_binary
from cpt_serving.web.errors import RequestError

triton = pytest.importorskip("tritonclient.utils")

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def arrays(datatype):
    return SHAPES.flatmap(lambda shape: hnp.arrays(DTYPES[datatype], shape))


@given(st.sampled_from(sorted(DTYPES)).flatmap(lambda name: st.tuples(st.just(name), arrays(name))))
def test_every_fixed_datatype_comes_back(case):
    datatype, values = case
    raw = to_binary(datatype, values)
    assert raw == values.tobytes()
    assert DTYPES[datatype] == np.dtype(triton.triton_to_np_dtype(datatype))
    back = from_binary("x", datatype, list(values.shape), memoryview(raw))
    assert back.shape == values.shape
    assert back.tobytes() == raw


@given(SHAPES.flatmap(lambda shape: hnp.arrays(object, shape, elements=st.binary(max_size=9), fill=st.nothing())))
def test_bytes_are_written_and_read_as_tritons_client_does(values):
    raw = to_binary("BYTES", values)
    if values.size:
        (serialized,) = (triton.serialize_byte_tensor(values),)
        assert raw == serialized.item()
        assert triton.deserialize_bytes_tensor(raw).tolist() == values.ravel().tolist()
    back = from_binary("x", "BYTES", list(values.shape), memoryview(raw))
    assert back.shape == values.shape
    assert back.ravel().tolist() == values.ravel().tolist()


def test_a_tensor_of_fixed_size_is_not_copied():
    raw = np.arange(6, dtype="<f4").tobytes()
    assert np.shares_memory(from_binary("x", "FP32", [2, 3], memoryview(raw)), np.frombuffer(raw, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "expected"),
    [
        ("FP32", [2], b"1234567", "to have 8 bytes, but got 7"),
        ("FP32", [2**62, 2**62], b"", "bytes, but got 0"),
        ("FP32", [0, 2**62], b"", "the shape of an array"),
        ("BOOL", [2**31, 0, 2**31, 2**31], b"", "the shape of an array"),
        ("BYTES", [0, 2**64], b"", "the shape of an array"),
        ("FP8", [1], b"1", "datatype of the protocol"),
        ("BYTES", [2], b"\1\0\0\0a", "only 5 bytes"),
        ("BYTES", [1], b"\2\0\0\0a", "element 0 of 'x' to have 2 bytes, but 1 follow"),
        ("BYTES", [2], b"\5\0\0\0abcde", "end after 1"),
        ("BYTES", [1], b"\1\0\0\0ab", "1 bytes are left over"),
        ("BYTES", [2**70], b"\1\0\0\0a", "only 5 bytes"),
    ],
)
def test_bytes_that_are_not_such_a_tensor(datatype, shape, raw, expected):
    with pytest.raises(RequestError, match=expected) as caught:
        from_binary("x", datatype, shape, memoryview(raw))
    assert caught.value.status == 400


@given(st.binary(max_size=40), st.lists(st.integers(0, 3), max_size=3))
def test_any_bytes_are_elements_or_a_400(raw, shape):
    values = None
    with contextlib.suppress(RequestError):
        values = from_binary("x", "BYTES", shape, memoryview(raw))
    if values is not None:
        assert values.size == math.prod(shape)
        assert to_binary("BYTES", values) == raw
