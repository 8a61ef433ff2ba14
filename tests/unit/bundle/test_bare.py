"""ONNX files without a bundle: what is tried to find whether their rows are independent, and within which memory."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import bare
from cpt_deploy.bundle.bare import bundle_of_file

MOST_BYTES = 16_000_000


@pytest.fixture
def convolution(tmp_path):
    """Writes a file with a convolution of 3 channels, whose input has the given sizes after the batch."""

    def make(*sizes):
        kernel = numpy_helper.from_array(np.ones((1, 3, *[1] * (len(sizes) - 1)), np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *sizes])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, *["" for _ in sizes[1:]]])],
            [kernel],
        )
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path

    return make


@pytest.fixture
def drawn(monkeypatch):
    """The shapes of the inputs that were made."""
    shapes, draw = [], bare.random_values

    def noted(random, dtype, shape):
        shapes.append(shape)
        assert 4 * math.prod(shape) <= 2 * MOST_BYTES, "the test itself must not take more"
        return draw(random, dtype, shape)

    monkeypatch.setattr(bare, "random_values", noted)
    return shapes


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_several_free_sizes_are_tried_within_16_mb(convolution, drawn, axes, caplog):
    assert not bundle_of_file(convolution(*[f"size_{axis}" for axis in range(axes)])).signature.joins_rows
    assert max(4 * math.prod(shape) for shape in drawn) <= MOST_BYTES
    assert len(drawn) == {2: 7, 3: 5, 4: 4}[axes]
    assert "are not joined" in caplog.text


def test_sizes_that_the_file_has_itself_are_tried_whatever_they_take(convolution, drawn):
    assert bundle_of_file(convolution(3, 700, 800)).signature.joins_rows
    assert drawn == [(3, 3, 700, 800)]


def test_memory_that_is_short_is_the_reason_why_rows_are_not_joined(convolution, monkeypatch, caplog):
    def short(*_):
        raise MemoryError("Unable to allocate 6.00 GiB")

    monkeypatch.setattr(bare, "random_values", short)
    assert not bundle_of_file(convolution(3, "height", "width")).signature.joins_rows
    assert "are not joined" in caplog.text
    assert "Unable to allocate" in caplog.text
