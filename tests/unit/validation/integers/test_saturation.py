"""The 16-bit bound against a simulation of the saturating instruction on every pair and extreme input."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt_deploy.bundle import BundleContents, write_bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.precision.accumulators import ReducedLayer
from cpt_deploy.validation import bundle_portability, bundle_saturation, layer_saturation

WEIGHTS = hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.integers(-128, 127))


def extreme_codes(activation_bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (activation_bits - 1)), 2 ** (activation_bits - 1) - 1) if signed else (0, 2**activation_bits - 1)


def saturates(row: np.ndarray, activation_bits: int, signed: bool) -> bool:
    """Whether adding any two products in int16 loses something; the sum is extreme at extreme activations."""
    extremes = extreme_codes(activation_bits, signed)
    sums = [
        int(row[i]) * x + int(row[j]) * y
        for i, j in itertools.combinations(range(len(row)), 2)
        for x in extremes
        for y in extremes
    ]
    return any(not -32768 <= total <= 32767 for total in sums)


@given(codes=WEIGHTS, bits=st.integers(2, 8), signed=st.booleans())
def test_channels_at_risk_are_those_in_which_some_pair_saturates(codes, bits, signed):
    got = layer_saturation("layer", codes, bits, signed=signed)
    assert got.channels_at_risk == sum(saturates(row, bits, signed) for row in codes)
    assert got.possible == (got.channels_at_risk > 0)


@given(codes=WEIGHTS, bits=st.integers(2, 8), signed=st.booleans(), data=st.data())
def test_no_inputs_exceed_the_worst_pair(codes, bits, signed, data):
    worst = layer_saturation("layer", codes, bits, signed=signed).worst_pair_sum
    inputs = data.draw(hnp.arrays(np.int64, codes.shape, elements=st.integers(*extreme_codes(bits, signed))))
    products = codes.astype(np.int64) * inputs
    for row in products:
        assert all(abs(a + b) <= worst for a, b in itertools.combinations(row.tolist(), 2))


@pytest.mark.parametrize(
    ("first", "second", "bits", "possible"),
    [(64, 64, 8, False), (65, 64, 8, True), (127, 127, 7, False), (127, -127, 8, False), (-64, -65, 8, True)],
)
def test_the_limit_at_8_bits_is_128_codes_of_one_sign(first, second, bits, possible):
    assert layer_saturation("layer", np.array([[first, second]], np.int8), bits).possible is possible


def test_symmetric_weights_never_saturate_beside_signed_activations():
    assert layer_saturation("layer", np.full((4, 8), -127, np.int8), 8, signed=True).worst_pair_sum == 128 * 254
    assert not layer_saturation("layer", np.full((4, 8), 127, np.int8), 8, signed=True).possible


def test_seven_bit_weights_never_saturate():
    codes = np.full((4, 8, 3, 3), 63, np.int8)
    assert layer_saturation("layer", codes, 8).worst_pair_sum == 255 * 126


def test_a_bundle_is_judged_layer_by_layer_at_the_bits_of_its_inputs(bundle, network):
    layers = bundle_saturation(bundle)
    assert [layer.name for layer in layers] == ["a", "b", "y"]
    assert [layer.activation_bits for layer in layers] == [8, 8, 8]
    assert layers[1] == layer_saturation("b", network.codes["second"], 8)


def test_a_graph_that_lacks_its_tensors_is_a_bundle_error(bundle_contents, tmp_path):
    contents: BundleContents = replace(bundle_contents(), graph={"operations": []})
    broken = write_bundle(tmp_path / "broken", contents=contents)
    with pytest.raises(BundleError, match="graph"):
        bundle_saturation(broken)


def test_a_portable_bundle_says_what_it_gave_up(bundle, bundle_contents, tmp_path):
    assert bundle_portability(bundle) is None
    entries = [
        {"layer": "conv", "channels": 8, "reduced_channels": 3, "min_quant_max": 70},
        {"layer": "fc", "channels": 2, "reduced_channels": 2, "min_quant_max": 64},
    ]
    contents = replace(bundle_contents(), facts={"portable": True, "reduced_layers": entries})
    portability = bundle_portability(write_bundle(tmp_path / "portable", contents=contents))
    assert portability.reduced == (ReducedLayer("conv", 8, 3, 70), ReducedLayer("fc", 2, 2, 64))
    assert portability.channels == 5


@pytest.mark.parametrize("facts", [{}, {"reduced_layers": 3}, {"reduced_layers": [{"layer": "a"}]}], ids=str)
def test_a_portable_bundle_that_does_not_say_it_is_damaged(bundle_contents, tmp_path, facts):
    broken = write_bundle(tmp_path / "broken", contents=replace(bundle_contents(), facts={"portable": True, **facts}))
    with pytest.raises(BundleError, match="reduced_layers"):
        bundle_portability(broken)
