"""The bound on sums against Python's integers: kernels that add products and corrections in all the ways known."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cpt_deploy.precision.accumulators import INT32_MOST, worst_average_sum, worst_sums

WEIGHTS = hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.integers(-128, 127))


def partial_sums(row: list[int], bias: int, x: list[int], zero_point: int, chance: random.Random) -> list[int]:
    """Every intermediate value of a kernel that adds a row's terms in some order, as exact integers.

    The terms are raw or centred products, the zero point's part of blocks of inputs before or after them, and the bias.
    """
    indices = list(range(len(row)))
    chance.shuffle(indices)
    block = chance.randint(1, len(row))
    centred, first, with_bias = (chance.random() < 0.5 for _ in range(3))
    terms = [bias] if with_bias else []
    for start in range(0, len(indices), block):
        part = indices[start : start + block]
        if centred:
            terms += [row[i] * (x[i] - zero_point) for i in part]
            continue
        correction = [-zero_point * sum(row[i] for i in part)]
        products = [row[i] * x[i] for i in part]
        terms += [*correction, *products] if first else [*products, *correction]
    terms += [] if with_bias else [bias]
    sums = [0]
    for term in terms:
        sums.append(sums[-1] + term)
    assert sums[-1] == bias + sum(w * (a - zero_point) for w, a in zip(row, x, strict=True))
    return sums


@given(WEIGHTS, st.integers(2, 8), st.data())
def test_no_partial_sum_of_any_kernel_exceeds_the_bound(codes, bits, data):
    quant_max = 2**bits - 1
    zero_point = data.draw(st.integers(0, quant_max))
    bias = data.draw(hnp.arrays(np.int32, len(codes), elements=st.integers(-(2**30), 2**30)))
    x = data.draw(st.lists(st.integers(0, quant_max), min_size=codes.shape[1], max_size=codes.shape[1]))
    chance = data.draw(st.randoms(use_true_random=False))
    worst = worst_sums(codes, bias, quant_max=quant_max, zero_point=zero_point)
    for row, offset, bound in zip(codes.tolist(), bias.tolist(), worst.tolist(), strict=True):
        assert max(map(abs, partial_sums(row, offset, x, zero_point, chance))) <= bound


@given(WEIGHTS, st.integers(2, 8), st.data())
def test_some_input_and_order_reach_the_bound(codes, bits, data):
    quant_max = 2**bits - 1
    zero_point = data.draw(st.integers(0, quant_max))
    for row, bound in zip(codes.tolist(), worst_sums(codes, quant_max=quant_max, zero_point=zero_point), strict=True):
        # raw products of one sign and the zero point's part of the others: greatest and least partial sum
        above = sum(quant_max * w for w in row if w > 0) - sum(zero_point * w for w in row if w < 0)
        below = sum(quant_max * w for w in row if w < 0) - sum(zero_point * w for w in row if w > 0)
        assert max(above, -below) == bound


def test_sums_beyond_int64s_32_bits_do_not_wrap_here():
    codes = np.full((1, 100_000), -127, np.int8)
    worst = worst_sums(codes, np.array([-5], np.int32), quant_max=255, zero_point=0)
    assert worst.tolist() == [127 * 255 * 100_000 + 5]
    assert INT32_MOST < 127 * 255 * 100_000


def test_an_average_adds_up_codes_alone():
    assert worst_average_sum(8_421_504, quant_max=255) <= INT32_MOST < worst_average_sum(8_421_505, quant_max=255)
