"""The bound on each layer's sums that a bundle's codes alone give, and the verdict on it."""

from dataclasses import replace

import numpy as np
import pytest

from cpt_deploy.bundle import write_bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.precision.accumulators import INT32_MOST
from cpt_deploy.validation import Accumulator, bundle_accumulators, overflow_reasons


def extreme_sum(codes: np.ndarray, zero_point: int) -> int:
    """The greatest sum of raw products and a part of the zero point's correction, row by row in Python's integers."""
    rows = codes.reshape(len(codes), -1).tolist()
    sides = [(sum(w for w in row if w > 0), -sum(w for w in row if w < 0)) for row in rows]
    return max(max(255 * p + zero_point * n, 255 * n + zero_point * p) for p, n in sides)


def test_a_bundle_is_judged_layer_by_layer(bundle, network):
    zero_points = {tensor["name"]: tensor["zero_point"] for tensor in network.quantizers}
    assert bundle_accumulators(bundle) == (
        Accumulator("a", extreme_sum(network.codes["first"], zero_points["x"])),
        Accumulator("b", extreme_sum(network.codes["second"], zero_points["a"])),
        Accumulator("mean", 255 * 64),
        Accumulator("y", extreme_sum(network.codes["last"], zero_points["flat"])),
    )


def test_sums_that_could_leave_int32_do_not_pass():
    fits, large = Accumulator("conv", INT32_MOST), Accumulator("fc", INT32_MOST + 1)
    assert overflow_reasons([fits]) == []
    assert fits.share == 1.0
    assert overflow_reasons([fits, large]) == ["the sums of 'fc' can reach 2,147,483,648, which int32 does not hold"]


def test_biases_count(bundle, monkeypatch):
    tensors = {**bundle.load_tensors(), "second.bias": np.full(4, -(2**31) + 1, np.int32)}
    monkeypatch.setattr(type(bundle), "load_tensors", lambda _: tensors)
    assert [entry.name for entry in bundle_accumulators(bundle) if entry.worst_sum > INT32_MOST] == ["b"]


def test_a_graph_that_lacks_its_tensors_is_a_bundle_error(bundle_contents, tmp_path):
    broken = write_bundle(tmp_path / "broken", contents=replace(bundle_contents(), graph={"operations": []}))
    with pytest.raises(BundleError, match="graph"):
        bundle_accumulators(broken)
