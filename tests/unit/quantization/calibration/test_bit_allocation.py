"""Bits by layer: what is measured, and how a budget is spent."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.quantization import (
    LayerSensitivity,
    QuantizationConfig,
    allocate_bits,
    measure_sensitivity,
    prepare,
)
from cpt_deploy.quantization.calibration.calibrate import calibrate

CANDIDATES = (3, 4, 5, 6, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    for _ in range(2):
        parts += [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * 16, 5))


def test_the_divergence_is_that_of_the_class_probabilities() -> None:
    net = nn.Sequential(*[nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 3)])
    model = prepare(net, torch.zeros(2, 1, 6, 6), QuantizationConfig()).eval()
    batch = torch.randn(16, 1, 6, 6)
    calibrate(model, [batch])
    [layer] = measure_sensitivity(model, [batch], [2, 8])
    with torch.no_grad():
        before = model(batch).softmax(1)
        # codes of 2 bits are codes of 8 bits too, so that quantizing them again changes nothing
        model.network.get_submodule("2").weight.copy_(_rounded(model.network.get_submodule("2").weight, 2))
        after = model(batch).softmax(1)
    expected = (before * (before / after).log()).sum(1).mean()
    assert layer.cost[2] == pytest.approx(float(expected), rel=1e-3, abs=1e-7)
    assert layer.cost[8] == pytest.approx(0, abs=1e-7)
    assert (layer.name, layer.weights) == ("2", 16)


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.round(weight / scale) * scale


def test_measuring_changes_nothing() -> None:
    model = prepare(network(), torch.zeros(2, 1, 6, 6), QuantizationConfig()).train()
    calibrate(model, [torch.randn(16, 1, 6, 6)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told: list[int] = []
    layers = measure_sensitivity(model, [torch.randn(8, 1, 6, 6)], CANDIDATES, progress=told.append)
    assert [layer.name for layer in layers] == ["3", "6"]
    assert told == [1, 2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(layer.cost[3] > layer.cost[8] for layer in layers)
    with pytest.raises(DataError, match="batch"):
        measure_sensitivity(model, [], CANDIDATES)


def layers_of(sizes: list[int], costs: list[list[float]]) -> list[LayerSensitivity]:
    """Layers whose divergence rises from 8 bits down by the given increments."""
    layers = []
    for index, (size, steps) in enumerate(zip(sizes, costs, strict=True)):
        divergence, total = {8: 0.0}, 0.0
        for bits, step in zip(sorted(CANDIDATES[:-1], reverse=True), steps, strict=True):
            total += step
            divergence[bits] = total
        layers.append(LayerSensitivity(f"layer{index}", size, divergence))
    return layers


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.lists(st.floats(0, 1), min_size=4, max_size=4)), min_size=1, max_size=8
    ),
    st.integers(0, 500),
    st.floats(0.01, 1),
)
def test_budgets_are_kept_and_no_bit_that_fits_is_left(
    rows: list[tuple[int, list[float]]], held: int, budget: float
) -> None:
    layers = layers_of([size for size, _ in rows], [costs for _, costs in rows])
    whole = 8 * (held + sum(size for size, _ in rows))
    smallest = 8 * held + 3 * sum(size for size, _ in rows)
    if smallest > budget * whole:
        with pytest.raises(UsageError, match="budget"):
            allocate_bits(layers, budget=budget, fixed_weights=held)
        return
    bits = allocate_bits(layers, budget=budget, fixed_weights=held)
    used = 8 * held + sum(bits[layer.name] * layer.weights for layer in layers)
    assert used <= budget * whole
    for layer in layers:
        now = bits[layer.name]
        for more in (b for b in CANDIDATES if b > now and layer.cost[b] < layer.cost[now]):
            assert used + (more - now) * layer.weights > budget * whole


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(sorted),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(sorted),
    st.integers(10, 16),
)
def test_equal_layers_with_convex_costs_get_the_best_there_is(a: list[float], b: list[float], room: int) -> None:
    """Then the greedy choice is optimal; all others are tried out here."""
    layers = [
        LayerSensitivity(str(i), 1, {8: 0.0} | {7 - j: sum(steps[: j + 1]) for j in range(len(steps))})
        for i, steps in enumerate((a, b))
    ]
    bits = allocate_bits(layers, budget=room / 16, fixed_weights=0)
    cost = sum(layer.cost[bits[layer.name]] for layer in layers)
    best = min(layers[0].cost[i] + layers[1].cost[j] for i, j in product(range(5, 9), repeat=2) if i + j <= room)
    assert cost == pytest.approx(best)


def test_sensitive_layers_keep_their_bits() -> None:
    layers = layers_of([100, 100], [[0.0, 0.0, 0.01, 0.01], [1.0, 1.0, 1.0, 1.0]])
    assert allocate_bits(layers, budget=0.75, fixed_weights=0) == {"layer0": 4, "layer1": 8}


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan"), 0.2])
def test_budgets_that_cannot_be_met_name_the_least(budget: float) -> None:
    with pytest.raises(UsageError, match=r"0\.375 to 1"):
        allocate_bits(layers_of([10], [[1.0] * 4]), budget=budget, fixed_weights=0)
