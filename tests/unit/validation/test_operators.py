"""What is left in float, on networks of which it is known."""

import pytest

from cpt_deploy.errors import BundleError
from cpt_deploy.validation import float_operators, optimized_operators


def test_a_network_with_quantizers_on_every_edge_runs_on_integer_kernels(network):
    operators = optimized_operators(network.model)
    assert {name: operators[name] for name in ("QLinearConv", "QLinearAdd", "QGemm")} == {
        "QLinearConv": 2,
        "QLinearAdd": 1,
        "QGemm": 1,
    }
    assert float_operators(network.model) == {}


def test_below_8_bits_the_clip_of_codes_is_no_float_operator(network_maker):
    low = network_maker(bits=4)
    assert optimized_operators(low.model)["Clip"] == 1
    assert float_operators(low.model) == {}


def test_an_operator_without_integer_form_is_reported(network_maker):
    assert float_operators(network_maker(inserted="Softplus").model) == {"Softplus": 1}


def test_scales_of_shape_1_leave_the_addition_in_float(network_maker):
    assert float_operators(network_maker(scale_shape=(1,)).model)["Add"] == 1


def test_an_integer_kernel_with_a_float_result_is_no_float_operator(network_maker):
    model = network_maker(float_head=True).model
    assert optimized_operators(model)["QGemm"] == 1
    assert float_operators(model) == {}


def test_operators_are_counted_by_name_in_order(network):
    assert list(optimized_operators(network.model)) == sorted(optimized_operators(network.model))


def test_bytes_that_are_no_model_are_a_bundle_error():
    with pytest.raises(BundleError, match="onnxruntime"):
        optimized_operators(b"no model")
