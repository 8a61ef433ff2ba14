"""Counting against NumPy on whole arrays, whatever the batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.validation import Accuracy
from cpt_deploy.validation.accuracy.runtimes import RuntimeComparison
from cpt_deploy.validation.integers.comparison import IntegerComparison, OutputAgreement
from cpt_deploy.validation.integers.intermediate_outputs import IntermediateOutput


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 60), max_size=4).map(sorted))
def test_batches_add_up_to_the_whole(seed, cuts):
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(size=(60, 4)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 4, 60)
    comparison = RuntimeComparison(["first", "second"], [("first", "second")], Accuracy())
    for start, end in zip([0, *cuts], [*cuts, 60], strict=True):
        batch = {"first": {"logits": first[start:end]}, "second": {"logits": second[start:end]}}
        for name, outputs in batch.items():
            comparison.score(name, outputs, labels[start:end])
        comparison.add(batch)
    (pair,) = comparison.comparisons()
    one, two = first.argmax(1), second.argmax(1)
    assert [runtime.value for runtime in comparison.runtimes()] == [(one == labels).mean(), (two == labels).mean()]
    assert pair.other_answers == (one != two).sum()
    assert pair.figures["only_first_right"] == ((one == labels) & (two != labels)).sum()
    assert pair.figures["only_second_right"] == ((one != labels) & (two == labels)).sum()
    assert pair.other_values == (first != second).sum()
    assert pair.worst_difference == np.abs(first.astype(np.float64) - second).max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_told(value):
    good, bad = np.zeros((2, 3), np.float32), np.full((2, 3), value, np.float32)
    comparison = RuntimeComparison(["good", "bad"], [("good", "bad")], Accuracy())
    for second in (bad, good):
        batch = {"good": {"logits": good}, "bad": {"logits": second}}
        for name, outputs in batch.items():
            comparison.score(name, outputs, np.zeros(2, np.int64))
        comparison.add(batch)
    assert [runtime.finite for runtime in comparison.runtimes()] == [True, False]
    assert comparison.comparisons()[0].worst_difference is None


def test_outputs_of_another_shape_are_other_values():
    comparison = RuntimeComparison(["one", "two"], [("one", "two")], Accuracy())
    batch = {name: {"logits": np.zeros((2, size), np.float32)} for name, size in (("one", 4), ("two", 3))}
    for name, outputs in batch.items():
        comparison.score(name, outputs, np.zeros(2, np.int64))
    comparison.add(batch)
    (pair,) = comparison.comparisons()
    assert (pair.other_values, pair.worst_difference) == (8, None)


@given(seed=st.integers(0, 1000), batches=st.integers(1, 3))
def test_mismatching_integers_are_counted_by_tensor(seed, batches):
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 256, (batches, 5, 7), dtype=np.uint8) for _ in range(2))
    same = rng.integers(0, 256, (batches, 3), dtype=np.uint8)
    comparison = IntegerComparison([IntermediateOutput("same", "Conv"), IntermediateOutput("other", "Add")])
    for a, b, c in zip(first, second, same, strict=True):
        comparison.add({"other": a, "same": c}, {"other": b, "same": c, "unused": c})
    alike, other = comparison.results()
    assert (alike.name, alike.values, alike.mismatches, alike.worst_difference) == ("same", same.size, 0, 0)
    difference = np.abs(first.astype(int) - second.astype(int))
    assert (other.values, other.mismatches) == (first.size, (difference > 0).sum())
    assert other.worst_difference == difference.max()


def test_all_integers_of_tensors_of_other_shapes_differ():
    comparison = IntegerComparison([IntermediateOutput("x", "Conv")])
    comparison.add({"x": np.zeros((2, 3), np.uint8)}, {"x": np.zeros((4, 2), np.uint8)})
    (found,) = comparison.results()
    assert (found.values, found.mismatches) == (8, 8)


@pytest.mark.parametrize("constant", [-1e9, -np.inf, 3.0])
def test_constants_of_a_mask_do_not_widen_the_tolerance(constant):
    first = np.array([[1.0, 2.0, constant], [1.0, 0.0, constant]], np.float32)
    agreement, close = OutputAgreement(1e-2), first + np.float32([[0, 0.01, 0], [0, 0.005, 0]])
    agreement.add({"y": first}, {"y": close})
    assert agreement.result().differing == 0
    agreement.add({"y": first}, {"y": first + np.float32([[0, 0.1, 0], [0, 0, 0]])})
    assert agreement.result().differing == 1
    agreement.add({"y": first}, {"y": np.full_like(first, np.inf)})
    assert agreement.result().differing == 1 + 6
