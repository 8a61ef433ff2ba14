"""Quantized tensors as outputs: which they are, that they are the real ones, and that they change nothing."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.validation import (
    add_intermediate_outputs,
    optimized_operators,
    quantized_tensors,
    with_intermediate_outputs,
)

INPUTS = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_edge_is_found_in_graph_order_with_its_operator(network_maker, bits):
    network = network_maker(bits=bits)
    intermediates = quantized_tensors(network.model)
    assert tuple(intermediate.name for intermediate in intermediates) == network.tensors
    assert [intermediate.operator for intermediate in intermediates] == [
        "input",
        "Conv",
        "Conv",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]


def test_the_clipped_codes_are_meant_below_8_bits(network_maker):
    traced = OnnxRuntimeModel(with_intermediate_outputs(network_maker(bits=3).model).model).trace({"image": INPUTS})
    assert traced["a"].max() == 7


@pytest.mark.parametrize("bits", [8, 4])
def test_tapping_every_edge_of_a_fused_network_leaves_it_fused(network_maker, bits):
    model = network_maker(bits=bits).model
    observable = with_intermediate_outputs(model)
    assert observable.hidden == ()
    plain, with_intermediates = optimized_operators(model), optimized_operators(observable.model)
    # Channels-last results are brought back for the output.
    assert with_intermediates.pop("Transpose") > plain.pop("Transpose")
    assert with_intermediates == plain


def test_tapped_and_plain_model_compute_the_same_logits(network):
    traced = OnnxRuntimeModel(with_intermediate_outputs(network.model).model).trace({"image": INPUTS})
    np.testing.assert_array_equal(traced["logits"], OnnxRuntimeModel(network.model).run({"image": INPUTS})["logits"])


def test_taps_hold_the_codes_that_onnx_defines(network):
    observable = with_intermediate_outputs(network.model)
    traced = OnnxRuntimeModel(observable.model).trace({"image": INPUTS})
    expected = ReferenceEvaluator(observable.model).run(None, {"image": INPUTS})[1:]
    for intermediate, codes in zip(observable.intermediates, expected, strict=True):
        assert traced[intermediate.name].dtype == np.uint8
        # Requantization in other float operations may differ by a code here and there.
        difference = np.abs(traced[intermediate.name].astype(int) - codes.astype(int))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.2


def test_a_tensor_whose_visibility_would_change_the_graph_stays_hidden(network_maker):
    # onnxruntime merges two quantizers in a row, unless somebody wants to see what is between them.
    model = network_maker(inserted="Identity").model
    observable = with_intermediate_outputs(model)
    assert [intermediate.name for intermediate in observable.hidden] == ["a", "inserted.codes"]
    assert [intermediate.name for intermediate in observable.intermediates] == ["x", "b", "sum", "mean", "flat", "y"]
    np.testing.assert_array_equal(
        OnnxRuntimeModel(observable.model).trace({"image": INPUTS})["logits"],
        OnnxRuntimeModel(model).run({"image": INPUTS})["logits"],
    )


def test_a_pooling_that_changes_its_layout_for_an_output_counts_as_the_same(pooled_network):
    model = pooled_network.model
    observable = with_intermediate_outputs(model)
    assert tuple(intermediate.name for intermediate in observable.intermediates) == pooled_network.tensors
    assert optimized_operators(model)["NhwcMaxPool"] == 1
    assert optimized_operators(observable.model)["MaxPool"] == 1
    np.testing.assert_array_equal(
        OnnxRuntimeModel(observable.model).trace({"image": INPUTS})["logits"],
        OnnxRuntimeModel(model).run({"image": INPUTS})["logits"],
    )


def test_codes_from_a_table_are_found_and_codes_that_are_only_moved_are_not():
    """A function of codes as a Gather from a table, and a transposition, both without dequantizing."""
    constants = {
        "scale": np.array(1 / 32, np.float32),
        "zero": np.array(128, np.uint8),
        "table": np.arange(256)[::-1].astype(np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["x"]),
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["y"], axis=0),
        helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("DequantizeLinear", ["turned", "scale", "zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    assert [(intermediate.name, intermediate.operator) for intermediate in quantized_tensors(model)] == [
        ("x", "input"),
        ("y", "Gather"),
    ]
    traced = OnnxRuntimeModel(with_intermediate_outputs(model).model).trace({"image": INPUTS})
    np.testing.assert_array_equal(traced["y"], 255 - traced["x"])


def test_a_tensor_is_added_once(network):
    twice = onnx.load_from_string(add_intermediate_outputs(add_intermediate_outputs(network.model, ["x"]), ["x", "a"]))
    assert [output.name for output in twice.graph.output] == ["logits", "x", "a"]
