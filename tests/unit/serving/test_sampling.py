"""What may be drawn, against the definition spelt out token by token, and how often it is, against its probability."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from scipy.special import log_softmax as scipy_log_softmax

from cpt_serving.inference.sampling import Sampler, SamplingOptions, candidates, log_softmax

LOGITS = arrays.arrays(np.float32, st.integers(1, 400), elements=st.integers(-16, 16).map(lambda n: n / 4))


def by_definition(logits, options):
    """Return the probabilities of the tokens that may be drawn, in order: after temperature, `top_k`, then `top_p`."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if options.top_k:
        order = order[: options.top_k]
    weights = [math.exp(float(logits[token] - logits.max()) / options.temperature) for token in order]
    total, kept = math.fsum(weights), {}
    for token, weight in zip(order, weights, strict=True):
        if options.top_p < 1 and math.fsum(kept.values()) >= options.top_p * total:
            break
        kept[token] = weight
    return {token: weight / math.fsum(kept.values()) for token, weight in kept.items()}


@settings(max_examples=200, deadline=None)
@given(
    LOGITS,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 7, 1000]),
    st.sampled_from([0.317, 0.9, 0.999, 1.0]),
)
def test_what_may_be_drawn_is_what_the_definition_says(logits, temperature, top_k, top_p):
    options = SamplingOptions(temperature, top_k, top_p)
    tokens, probabilities = candidates(log_softmax(logits), options)
    found = dict(zip(tokens.tolist(), probabilities.tolist(), strict=True))
    expected = by_definition(logits, options)
    # Where a sum meets top_p up to rounding, the token there may belong to them or not.
    assert set(found) ^ set(expected) <= {max(found | expected, key=lambda token: (-logits[token], token))}
    if found.keys() == expected.keys():
        assert found == pytest.approx(expected, rel=1e-9)
    if top_k or top_p < 1:
        assert list(found) == sorted(found, key=lambda token: (-logits[token], token))


def test_nucleus_of_a_flat_distribution_is_as_large_as_it_has_to_be():
    flat = log_softmax(np.zeros(5000, np.float32))
    tokens, probabilities = candidates(flat, SamplingOptions(top_p=0.7501))
    assert tokens.tolist() == list(range(3751))
    assert probabilities.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options", [SamplingOptions(1.5), SamplingOptions(1.5, top_k=4), SamplingOptions(1.5, top_p=0.8)], ids=str
)
def test_tokens_are_drawn_as_often_as_they_are_probable(options):
    logits = np.random.default_rng(0).normal(0, 1, 12).astype(np.float32)
    expected, sampler = by_definition(logits, options), Sampler(options)
    log_probabilities = log_softmax(logits)
    drawn = [sampler.draw(log_probabilities) for _ in range(4000)]
    counts = [drawn.count(token) for token in expected]
    assert sum(counts) == 4000  # and nothing else
    assert stats.chisquare(counts, [4000 * probability for probability in expected.values()]).pvalue > 0.001


def test_temperature_of_zero_takes_the_first_of_the_most_probable():
    assert Sampler(SamplingOptions(0)).draw(log_softmax(np.float32([1, 3, 3, 2]))) == 1


@given(LOGITS)
def test_log_probabilities_are_those_of_scipy(logits):
    np.testing.assert_allclose(log_softmax(logits), scipy_log_softmax(logits.astype(np.float64)), atol=1e-12)
