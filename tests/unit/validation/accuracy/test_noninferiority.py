"""Tango's interval against published ones, an independent maximum of the likelihood, and its own promise; verdicts."""

from math import exp, lgamma, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from cpt_deploy.validation import judge_losses, judge_pairs, tango_interval
from cpt_deploy.validation.accuracy.noninferiority import allowed_rise, rise_in_percent, student_quantile

Z = stats.norm.ppf(0.975)


@st.composite
def tables(draw):
    samples = draw(st.integers(1, 3000))
    first = draw(st.integers(0, samples))
    return first, draw(st.integers(0, samples - first)), samples


@pytest.mark.parametrize(
    ("only_first", "only_second", "samples", "published"),
    [
        # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), 2850-2875: airway hyper-responsiveness
        (1, 7, 21, (-0.517, -0.026)),
        # Agresti and Min, Statistics in Medicine 24 (2005), 729-740: approval of two periods, 53, 16, 8, 9
        (16, 8, 86, (-0.020, 0.207)),
    ],
)
def test_the_interval_is_the_published_one(only_first, only_second, samples, published):
    assert tuple(round(end, 3) for end in tango_interval(only_first, only_second, samples)) == published


@pytest.mark.parametrize("table", [(1, 7, 21), (84, 77, 5000), (40, 20, 160), (0, 3, 50), (9, 0, 400)])
def test_at_its_ends_the_score_under_the_most_likely_table_is_the_normal_quantile(table):
    """The constrained maximum is found here by a search over the likelihood, and not by Tango's closed form."""
    b, c, n = table
    for end, sign in zip(tango_interval(*table), (1, -1), strict=True):

        def unlikely(q, end=end):
            """Negative log-likelihood where only the second is right in a share q, and only the first in q + end."""
            shares = (q + end, q, 1 - 2 * q - end)
            return -sum(k * log(max(p, 1e-300)) for k, p in zip((b, c, n - b - c), shares, strict=True) if k)

        low, high = max(0.0, -end), (1 - end) / 2
        q = minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = (b - c - n * end) / sqrt(n * (2 * q + end - end**2))
        assert score == pytest.approx(sign * Z, abs=2e-3)


@given(tables())
def test_who_is_first_changes_the_sign_alone(table):
    b, c, n = table
    low, high = tango_interval(b, c, n)
    assert tango_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-12)
    assert -1 <= low <= (b - c) / n <= high <= 1


@given(tables())
def test_losing_one_more_answer_never_looks_better(table):
    b, c, n = table
    if b + c < n:
        assert tango_interval(b + 1, c, n)[1] >= tango_interval(b, c, n)[1] - 1e-12


@given(tables(), st.floats(0, 0.2), st.floats(0, 0.2))
def test_what_passes_goes_on_passing_where_more_is_allowed(table, one, other):
    less, more = sorted((one, other))
    order = ["failed", "undecided", "passed"]
    assert order.index(judge_pairs(*table, less).state) <= order.index(judge_pairs(*table, more).state)


@given(tables(), st.floats(0.001, 0.1))
def test_as_many_more_samples_as_are_said_decide(table, allowed):
    b, c, n = table
    verdict = judge_pairs(b, c, n, allowed)
    if verdict.more_samples is None:
        return
    assert verdict.state == "undecided"
    times = 1 + verdict.more_samples / n
    low, high = tango_interval(b * times, c * times, n * times)
    assert high < allowed or low > allowed


def test_without_an_answer_that_differs_the_interval_is_wilsons():
    for n in (1, 40, 355, 5000):
        assert tango_interval(0, 0, n)[1] == pytest.approx(Z**2 / (n + Z**2), rel=1e-9)


def coverage(n, only_first, only_second):
    """Return the exact probability that the interval covers the true difference."""
    shares = np.log([only_first, only_second, 1 - only_first - only_second])
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            counts = (b, c, n - b - c)
            chance = lgamma(n + 1) + sum(k * share - lgamma(k + 1) for k, share in zip(counts, shares, strict=True))
            if chance < -25:
                continue
            low, high = tango_interval(b, c, n)
            total += exp(chance) * (low <= only_first - only_second <= high)
    return total


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.2, 0.05), (0.02, 0.02), (0.3, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(shares):
    assert 0.93 <= coverage(40, *shares) <= 0.995


@pytest.mark.parametrize(("samples", "discordant"), [(5000, 0.03), (10_000, 0.02), (2000, 0.1)])
def test_what_loses_just_as_much_as_is_not_allowed_passes_in_one_of_forty(samples, discordant):
    drop, random = 0.005, np.random.default_rng(0)
    shares = [(discordant + drop) / 2, (discordant - drop) / 2, 1 - discordant]
    intervals = [tango_interval(int(b), int(c), samples) for b, c, _ in random.multinomial(samples, shares, size=3000)]
    passed, failed = (
        np.mean(found) for found in zip(*((high < drop, low > drop) for low, high in intervals), strict=True)
    )
    # three standard errors of 3,000 draws of a share of 0.025
    assert passed == pytest.approx(0.025, abs=0.009)
    assert failed == pytest.approx(0.025, abs=0.009)


def test_the_cases_that_the_gate_is_for():
    # 7 images fewer of 5,000 with McNemar's p = 0.64, as of 84 against 77 answers: no failure
    close = judge_pairs(84, 77, 5000, 0.005)
    assert (close.state, close.more_samples) == ("undecided", 4700)
    assert judge_pairs(2 * 84, 2 * 77, 10_000, 0.005).state == "passed"
    assert judge_pairs(84, 77, 5000, 0.01).state == "passed"
    assert judge_pairs(7, 0, 5000, 0.005).state == "passed"
    assert judge_pairs(3500, 5, 5000, 0.005).state == "failed"
    few = judge_pairs(0, 0, 40, 0.005)
    assert (few.state, few.more_samples) == ("undecided", 730)
    assert judge_pairs(50, 25, 5000, 0.005).more_samples is None  # just what is allowed


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 101, 655, 20_000])
def test_students_quantile_is_scipys(freedom):
    for probability in (0.6, 0.9, 0.975, 0.999):
        assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=2e-4)


def test_blocks_of_equal_length_give_the_interval_of_a_paired_t_test():
    random = np.random.default_rng(1)
    first, tokens = random.normal(80, 5, 50), np.full(50, 16)
    second = first + random.normal(0.02, 0.4, 50)
    verdict = judge_losses(first, second, tokens, 0.005)
    expected = stats.ttest_rel(second / 16, first / 16).confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert verdict.samples == 800


def test_blocks_of_other_lengths_give_the_mean_of_all_tokens():
    tokens = np.array([128, 128, 128, 37])
    first = np.array([300.0, 310.0, 290.0, 90.0])
    verdict = judge_losses(first, first + 0.01 * tokens, tokens, 0.02)
    assert (verdict.loss, verdict.state) == (pytest.approx(0.01), "passed")
    assert verdict.high == pytest.approx(verdict.low, abs=1e-12)


def test_losses_cover_the_truth_though_neighbours_are_alike():
    """Losses of a chain whose neighbours correlate by 0.5: intervals of single tokens would cover far too seldom."""
    random, covered, narrow = np.random.default_rng(2), 0, 0
    for _ in range(200):
        noise = random.normal(size=40 * 128 + 1)
        chain = noise[1:] + noise[:-1]
        blocks, ones = chain.reshape(40, 128).sum(axis=1), np.full(40, 128)
        verdict = judge_losses(np.zeros(40), blocks, ones, 1.0)
        covered += verdict.low <= 0 <= verdict.high
        single = judge_losses(np.zeros(chain.size), chain, np.ones(chain.size, np.int64), 1.0)
        narrow += single.low <= 0 <= single.high
    assert 0.92 <= covered / 200 <= 0.98
    assert narrow / 200 < 0.88


def test_one_block_cannot_tell():
    assert judge_losses(np.array([10.0]), np.array([10.0]), np.array([8]), 0.005).state == "undecided"


@given(st.floats(0, 50))
def test_percent_of_perplexity_and_nats_are_each_others_inverse(percent):
    assert rise_in_percent(allowed_rise(percent)) == pytest.approx(percent, abs=1e-9)


@pytest.mark.parametrize("table", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_tables_that_are_none_are_refused(table):
    with pytest.raises(ValueError, match="sample"):
        tango_interval(*table)
