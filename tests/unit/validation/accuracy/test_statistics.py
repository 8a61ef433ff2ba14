"""Intervals and p-values against SciPy and closed forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cpt_deploy.validation import mcnemar_exact, wilson_interval

COUNTS = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts=COUNTS, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_that_of_scipy(counts, confidence):
    successes, trials = counts
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    got = wilson_interval(successes, trials, confidence=confidence)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert got.value == successes / trials


@given(counts=COUNTS)
def test_the_interval_holds_the_share_and_stays_within_0_and_1(counts):
    got = wilson_interval(*counts)
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got.low < got.high


def test_the_interval_of_all_and_none_has_the_closed_form():
    # With all n right the bounds are n / (n + z^2) and 1.
    z2 = 1.959963984540054**2
    every, none = wilson_interval(100, 100), wilson_interval(0, 100)
    assert (every.low, every.high) == pytest.approx((100 / (100 + z2), 1))
    assert (none.low, none.high) == pytest.approx((0, z2 / (100 + z2)))


@pytest.mark.parametrize(("successes", "trials"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_that_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=confidence)


@given(first=st.integers(0, 300), second=st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (2, 8, 2 * (1 + 10 + 45) / 1024), (6, 6, 1.0), (0, 2000, 2.0**-1999)],
    ids=str,
)
def test_mcnemar_has_the_closed_form_in_either_direction(first, second, p):
    # 2^-1999 is no float64; it has to come out as zero and not as an overflow.
    assert mcnemar_exact(first, second) == mcnemar_exact(second, first) == pytest.approx(p)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="-1"):
        mcnemar_exact(3, -1)


def test_mcnemar_of_many_samples_ends():
    # A sum of binomial coefficients, each computed by itself, takes hours.
    assert mcnemar_exact(20_000, 20_500) == pytest.approx(stats.binomtest(20_000, 40_500, 0.5).pvalue, rel=1e-9)
