"""Confusion matrices against scikit-learn's, and samples of logits that are what they say."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from cpt_deploy.validation.accuracy.details import MOST_CELLS, MOST_PAIRS, ConfusionCount, OutputSampler


@settings(max_examples=50)
@given(
    classes=st.integers(2, 12), batches=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 99)
)
def test_counts_are_those_of_scikit_learn(classes, batches, seed):
    rng = np.random.default_rng(seed)
    count, everything = ConfusionCount(classes), []
    for size in batches:
        logits, labels = rng.normal(size=(size, classes)).astype(np.float32), rng.integers(0, classes, size)
        count.add(logits.argmax(axis=1), labels)
        everything.append((labels, logits.argmax(axis=1)))
    labels, given_labels = (np.concatenate(part) for part in zip(*everything, strict=True))
    result = count.result()
    dense = np.zeros((classes, classes), np.int64)
    for right, predicted, number in result.cells:
        dense[right, predicted] = number
    np.testing.assert_array_equal(dense, confusion_matrix(labels, given_labels, labels=range(classes)))
    assert result.omitted == 0
    assert result.samples == tuple(np.bincount(labels, minlength=classes))


def test_of_many_cells_the_most_frequent_are_kept():
    classes, count = 60, ConfusionCount(60)
    count.add(np.tile(np.arange(classes), classes), np.repeat(np.arange(classes), classes))
    count.add(np.arange(classes), np.arange(classes))
    result = count.result()
    assert len(result.cells) == MOST_CELLS
    assert all((i, i, 2) in result.cells for i in range(classes))
    assert result.omitted == classes**2 - MOST_CELLS
    assert result.samples == (classes + 1,) * classes


def test_logits_are_sampled_in_pairs_over_all_batches():
    rng = np.random.default_rng(1)
    first = rng.normal(size=(1000, 7)).astype(np.float32)
    second = first + np.float32(100)
    sampler = OutputSampler("a", "b", 1000)
    for start in range(0, 1000, 64):
        sampler.add(first[start : start + 64], second[start : start + 64], len(first[start : start + 64]))
    pairs = sampler.result()
    assert len(pairs.first_values) == MOST_PAIRS
    differences = np.subtract(pairs.second_values, pairs.first_values)
    np.testing.assert_allclose(differences, 100, atol=1e-3)
    rounded = {float(f"{value:.6g}") for value in first.ravel()}
    assert set(pairs.first_values) <= rounded


def test_of_few_logits_all_finite_ones_are_kept():
    sampler = OutputSampler("a", "b", 2)
    sampler.add(np.float32([[1, 2]]), np.float32([[1, np.nan]]), 1)
    sampler.add(np.float32([[3, 4]]), np.float32([[5, 6]]), 1)
    pairs = sampler.result()
    assert (pairs.first_values, pairs.second_values) == ((1, 3, 4), (1, 5, 6))
