"""Scores, metrics and paired tests against torch, scikit-learn and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score

from cpt_deploy.errors import DataError
from cpt_deploy.validation import Accuracy, Perplexity, RSquared, Samples, Scores, judge_losses
from cpt_deploy.validation.accuracy.reference import Recorded

RNG = np.random.default_rng(3)


def scored(scoring, batches):
    scores = Scores()
    for outputs, targets in batches:
        scores.add(scoring.scores(outputs, targets), targets)
    return scores


def test_perplexity_is_that_of_torch_for_logits_and_log_probabilities():
    logits = RNG.normal(size=(2, 3, 5, 11)).astype(np.float32)
    targets = RNG.integers(0, 11, (2, 3, 5))
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 11), torch.from_numpy(targets).ravel()
    )
    for scores in (logits, torch.log_softmax(torch.from_numpy(logits), -1).numpy()):
        found = scored(Perplexity(), [({"logits": part}, wanted) for part, wanted in zip(scores, targets, strict=True)])
        assert found.count == 30
        assert Perplexity().value(found) == pytest.approx(math.exp(loss), rel=1e-6)


def test_four_batches_of_a_row_are_one_observation():
    first, second = (Scores(), Scores())
    for length in (4, 4, 4, 2, 3, 3):  # two blocks of each row
        targets = np.zeros((2, length), np.int64)
        values = RNG.normal(3, 1, (2, length))
        first.add(values, targets)
        second.add(values + RNG.normal(0.01, 0.02, (2, length)), targets)
    blocks = [slice(0, 4), slice(4, 6)]
    sums = [
        np.array([sum(part[row].sum() for part in scores.values[block]) for block in blocks for row in range(2)])
        for scores in (first, second)
    ]
    counts = np.array([sum(part.shape[1] for part in first.values[block]) for block in blocks for _ in range(2)])
    expected = judge_losses(*sums, counts, math.log(1.02))
    verdict = Perplexity().judge(first, second, 2.0)
    assert verdict.loss == pytest.approx(100 * math.expm1(expected.loss))
    assert (verdict.low, verdict.high) == pytest.approx([100 * math.expm1(b) for b in (expected.low, expected.high)])
    assert verdict.allowed == pytest.approx(2.0)
    assert verdict.state == expected.state


def test_r_squared_is_that_of_scikit_learn_and_its_drop_is_in_points():
    targets = RNG.normal(5, 2, (200, 1))
    near, far = targets + RNG.normal(0, 0.5, (200, 1)), targets + RNG.normal(0, 0.8, (200, 1))
    scoring = RSquared("y")
    wanted = np.split(targets, 4)
    trained, served = (
        scored(scoring, [({"y": part}, target) for part, target in zip(np.split(values, 4), wanted, strict=True)])
        for values in (near, far)
    )
    assert scoring.value(trained) == pytest.approx(r2_score(targets, near))
    assert scoring.value(served) == pytest.approx(r2_score(targets, far))
    verdict = scoring.judge(trained, served, 0.5)
    assert verdict.loss == pytest.approx(100 * (r2_score(targets, near) - r2_score(targets, far)))
    differences = ((far - targets) ** 2 - (near - targets) ** 2).ravel()
    interval = stats.t.interval(0.95, 199, differences.mean(), stats.sem(differences))
    scale = 100 / targets.var()
    assert (verdict.low, verdict.high) == pytest.approx([scale * bound for bound in interval])
    assert verdict.state == "failed"


@pytest.mark.parametrize(
    ("scoring", "recorded", "measured", "differs"),
    [
        (Accuracy(), 0.9, 0.9049, False),
        (Accuracy(), 0.9, 0.906, True),
        (Perplexity(), 100.0, 100.4, False),
        (Perplexity(), 100.0, 100.6, True),
        (Perplexity(), 100.0, math.nan, True),
        (RSquared("y"), 0.01, 0.012, False),
        (RSquared("y"), 0.5, 0.49, True),
    ],
)
def test_a_second_measurement_may_differ_a_little(scoring, recorded, measured, differs):
    assert scoring.remeasured_differs(recorded, measured, 1000) is differs


@pytest.mark.parametrize(
    ("recorded", "same"),
    [
        (Recorded(0.9, 70, "set", "a"), True),  # the digest says that it is the same, in however many samples
        (Recorded(0.9, 100, "set", "b"), False),
        (Recorded(0.9, 100, "set"), True),
        (Recorded(0.9, 99, "set"), False),
        (Recorded(0.9, 100, "other"), False),
    ],
)
def test_a_recorded_metric_belongs_to_a_whole_split(recorded, same):
    assert recorded.is_of(Samples("set", "test", "a", 100, 100, lambda: iter(()))) is same
    assert not recorded.is_of(Samples("set", "test", "a", 100, 50, lambda: iter(())))


def test_equal_targets_have_no_coefficient_of_determination():
    scoring = RSquared("y")
    targets = np.ones(3)
    scores = Scores([scoring.scores({"y": np.zeros(3)}, targets)], [targets])
    with pytest.raises(DataError, match="targets that differ"):
        scoring.value(scores)


def test_accuracy_that_is_no_number_differs_from_its_report():
    assert Accuracy().remeasured_differs(float("nan"), 0.9, 100)
