from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from cpt_deploy.bundle import Golden, OnnxRuntimeModel, Prediction, compare_golden, read_golden, softmax, top_k
from cpt_deploy.errors import BundleError, UsageError
from cpt_deploy.validation import with_intermediate_outputs
from tests.unit.conftest import LOGIT_SCALE, LOGIT_ZERO

PICTURES = np.random.default_rng(1).uniform(-1.2, 1.2, (50, 3, 8, 8)).astype(np.float32)


def expected_logits(codes):
    centred = codes.astype(np.int32) - LOGIT_ZERO
    return centred.astype(np.float32) * np.float32(LOGIT_SCALE)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("threads", [1, 2, None])
def test_logits_are_those_of_plain_integer_arithmetic(shared_bundle, reference_codes, optimize, threads):
    model = OnnxRuntimeModel(shared_bundle.onnx_path, shared_bundle.signature, optimize=optimize, threads=threads)
    assert np.array_equal(model.run({"image": PICTURES})["logits"], expected_logits(reference_codes(PICTURES)))


def test_further_outputs_are_traced_beside_those_of_the_signature(shared_bundle, reference_codes):
    observable = with_intermediate_outputs(shared_bundle.onnx_path.read_bytes())
    model = OnnxRuntimeModel(observable.model, shared_bundle.signature)
    assert model.intermediate_names == ("image_codes", "flat_codes", "logit_codes")
    traced = model.trace({"image": PICTURES})
    assert np.array_equal(traced["logit_codes"], reference_codes(PICTURES))
    assert traced["image_codes"].dtype == np.uint8
    plain = OnnxRuntimeModel(shared_bundle.onnx_path).run({"image": PICTURES})
    assert plain.keys() == {"logits"}
    assert np.array_equal(traced["logits"], plain["logits"])
    session = ReferenceEvaluator(onnx.load(shared_bundle.onnx_path))
    assert np.array_equal(traced["logits"], session.run(None, {"image": PICTURES})[0])


def test_a_model_from_bytes_is_the_same(shared_bundle):
    model = OnnxRuntimeModel(shared_bundle.onnx_path.read_bytes())
    assert model.signature == shared_bundle.signature
    assert model.providers == ["CPUExecutionProvider"]
    expected = OnnxRuntimeModel(shared_bundle.onnx_path).run({"image": PICTURES})
    assert np.array_equal(model.run({"image": PICTURES})["logits"], expected["logits"])


def test_runs_from_several_threads_do_not_disturb_each_other(shared_bundle):
    model = OnnxRuntimeModel(shared_bundle.onnx_path)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda row: model.run({"image": row[None]})["logits"], PICTURES))
    assert np.array_equal(np.concatenate(rows), model.run({"image": PICTURES})["logits"])


def test_golden_sample_is_reproduced(shared_bundle):
    check = OnnxRuntimeModel(shared_bundle.onnx_path).reproduce_golden(shared_bundle.golden)
    assert check.reproduced
    assert (check.values, check.mismatches, check.worst_difference, check.same_labels) == (12, 0, 0, True)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_a_golden_sample_that_differs_is_counted_in_codes(shared_bundle, reference_codes, steps):
    golden = shared_bundle.golden
    codes = reference_codes(golden.inputs["image"])
    codes[1, 2] = codes[1, 2] - steps if codes[1, 2] > 128 else codes[1, 2] + steps
    changed = replace(golden, outputs={"logits": expected_logits(codes)})
    check = OnnxRuntimeModel(shared_bundle.onnx_path).reproduce_golden(changed)
    assert (check.reproduced, check.mismatches, check.worst_difference) == (False, 1, steps)


def test_logits_that_are_no_numbers_are_not_equal(shared_bundle):
    golden = shared_bundle.golden
    check = compare_golden(golden, {"logits": np.full((4, 3), np.nan, np.float32)})
    assert (check.mismatches, check.worst_difference, check.worst) == (12, 255, np.inf)


def test_outputs_within_their_tolerance_are_reproduced(shared_bundle):
    outputs = {"y": np.array([1.0, 2.0]), "n": np.array([3, 4])}
    golden = Golden({"x": np.ones((2, 1))}, outputs, tolerances={"y": 0.1})
    assert compare_golden(golden, {"y": np.array([1.05, 1.95]), "n": np.array([3, 4]), "x": np.zeros(2)}).reproduced
    check = compare_golden(golden, {"y": np.array([1.2, 1.95]), "n": np.array([3, 5])})
    assert (check.values, check.mismatches, check.tolerance, check.same_labels) == (4, 2, 0.1, False)
    with pytest.raises(ValueError, match="output n"):
        compare_golden(golden, {"y": np.array([1.0, 2.0])})


@pytest.mark.parametrize(
    "inputs",
    [{"image": np.zeros((1, 3, 9, 9), np.float32)}, {"x": np.zeros((1, 3), np.float32)}],
    ids=["shape", "name"],
)
def test_a_golden_sample_of_another_model_is_refused(shared_bundle, inputs):
    model = OnnxRuntimeModel(shared_bundle.onnx_path)
    with pytest.raises(BundleError, match="golden sample"):
        model.reproduce_golden(Golden(inputs, {"logits": np.zeros((1, 3), np.float32)}))


@given(
    arrays.arrays(np.float32, (2, 5), elements=st.floats(-1e6, 1e6, width=32)),
    arrays.arrays(np.int64, (2, 3)),
    st.floats(2**-20, 1000, width=32),
    st.floats(0, 1e3),
)
def test_golden_samples_survive_the_file(values, integers, scale, tolerance):
    sample = Golden(
        {"a": values, "b.c": integers}, {"y": values, "z": values, "n": integers}, {"y": scale}, {"z": tolerance}
    )
    read = read_golden(sample.to_bytes())
    assert (read.scales, read.tolerances, read.tolerance) == ({"y": scale}, {"z": tolerance}, tolerance)
    for part in ("inputs", "outputs"):
        ours, theirs = getattr(sample, part), getattr(read, part)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


GOOD = {"inputs": {"x": np.zeros((2, 3), np.float32)}, "outputs": {"y": np.zeros((2, 3), np.float32)}}


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {}},
        {"outputs": {}},
        {"inputs": {"x": np.zeros((0, 3), np.float32)}, "outputs": {"y": np.zeros((0, 3), np.float32)}},
        {"outputs": {"y": np.full((2, 3), np.nan, np.float32)}},
        {"outputs": {"y": np.array(["a", "b"])}},
        {"scales": {"y": 0.0}},
        {"scales": {"y": np.inf}},
        {"scales": {"x": 1.0}},
        {"tolerances": {"y": -1.0}},
        {"scales": {"y": 1.0}, "tolerances": {"y": 1.0}},
    ],
    ids=["no input", "no output", "no rows", "not a number", "text", "scale 0", "infinite scale", "of an input",
         "negative", "both"],
)  # fmt: skip
def test_unfit_golden_samples_are_refused(change):
    with pytest.raises(ValueError, match="Expected"):
        Golden(**{**GOOD, **change})


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": np.zeros((1, 3, 8, 8))},
        {"image": np.zeros((3, 8, 8), np.float32)},
        {"image": np.zeros((1, 3, 8, 9), np.float32)},
    ],
    ids=["float64", "no batch", "width"],
)
def test_other_inputs_are_refused_with_what_was_expected(shared_bundle, inputs):
    with pytest.raises(ValueError, match=r"float32 \(N, 3, 8, 8\)"):
        OnnxRuntimeModel(shared_bundle.onnx_path).run(inputs)


@pytest.mark.parametrize("content", [b"", b"not a model"], ids=["empty", "text"])
def test_files_that_are_no_models_are_bundle_errors(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        OnnxRuntimeModel(tmp_path / "model.onnx")
    assert "\n" not in caught.value.message


def test_models_with_other_tensors_are_refused(shared_bundle):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BundleError, match=r"image \(float32\)"):
        OnnxRuntimeModel(model.SerializeToString(), shared_bundle.signature)


def test_unknown_provider_and_thread_count_are_usage_errors(shared_bundle):
    with pytest.raises(UsageError) as caught:
        OnnxRuntimeModel(shared_bundle.onnx_path, provider="abacus")
    assert "CPUExecutionProvider" in str(caught.value.hint)
    with pytest.raises(UsageError, match="at least 1"):
        OnnxRuntimeModel(shared_bundle.onnx_path, threads=0)


LOGITS = st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))
)


@given(LOGITS)
def test_softmax_is_a_distribution_and_does_not_overflow(logits):
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(softmax(logits.astype(np.float64) + 1000), probabilities, atol=1e-9)


@given(LOGITS, st.integers(1, 10))
def test_top_k_is_the_sorted_head_of_the_row(logits, k):
    labels = [f"class {index}" for index in range(logits.shape[1])]
    for row, predictions in zip(logits, top_k(logits, labels, k), strict=True):
        expected = sorted(range(len(row)), key=lambda index: (-row[index], index))[:k]
        assert [p.index for p in predictions] == expected
        assert [p.label for p in predictions] == [labels[index] for index in expected]


def test_top_k_example():
    logits = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
    ((first, second),) = top_k(logits, ["a", "b", "c"], 2)
    assert first == Prediction("b", 1, pytest.approx(0.5, abs=1e-6))
    assert second == Prediction("c", 2, pytest.approx(0.3, abs=1e-6))


def test_top_k_refuses_unfit_arguments():
    with pytest.raises(ValueError, match="k to be at least 1"):
        top_k(np.zeros((1, 2)), ["a", "b"], 0)
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        top_k(np.zeros((1, 3)), ["a", "b"], 1)
