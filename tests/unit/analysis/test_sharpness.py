"""Ascent to the edge of a ball, against quadratics whose maximum there is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cpt_deploy.analysis import SharpnessSettings, measure_sharpness, minimum
from cpt_deploy.analysis.sharpness import ascent_rise
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe import load_recipe


def quadratic(diagonal, start, linear=None):
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    curvature = torch.tensor(diagonal, dtype=torch.float64)
    slope = torch.zeros_like(curvature) if linear is None else torch.tensor(linear, dtype=torch.float64)

    def losses():
        yield (curvature * weight**2).sum() / 2 + (slope * weight).sum(), 1

    return weight, losses


def test_one_step_is_that_of_sam():
    weight, losses = quadratic([4.0, 1.0], [1.0, 1.0])
    reached = ascent_rise([weight], losses, radius=0.1, steps=1)

    gradient = torch.tensor([4.0, 1.0], dtype=torch.float64)
    there = torch.tensor([1.0, 1.0]) + 0.1 * gradient / gradient.norm()
    assert reached == [pytest.approx(float((torch.tensor([4.0, 1.0]) * there**2).sum() / 2), rel=1e-6)]
    assert weight.tolist() == [1.0, 1.0]


def test_many_steps_find_the_maximum_in_the_ball():
    """At the minimum of ½ wᵀAw the greatest rise in a ball of radius ρ is ½ λ ρ² for the largest eigenvalue λ."""
    weight, losses = quadratic([9.0, 3.0, 1.0], [1e-9, 1e-3, 1e-3])
    assert ascent_rise([weight], losses, radius=0.5, steps=40)[-1] == pytest.approx(9.0 / 2 * 0.5**2, rel=1e-2)


def test_a_plane_rises_by_slope_times_radius():
    weight, losses = quadratic([0.0, 0.0], [0.0, 0.0], linear=[3.0, 4.0])
    assert ascent_rise([weight], losses, radius=0.2, steps=3) == pytest.approx([1.0, 1.0, 1.0])


def test_scales_are_the_units_of_the_ball():
    """With units s the slope in the ball's coordinates is s·g."""
    weight, losses = quadratic([0.0, 0.0], [0.0, 0.0], linear=[3.0, 4.0])
    scales = [torch.tensor([2.0, 0.0], dtype=torch.float64)]
    assert ascent_rise([weight], losses, radius=0.5, steps=1, scales=scales) == pytest.approx([3.0])


def test_where_there_is_no_slope_nothing_rises():
    weight, losses = quadratic([0.0], [2.0])
    assert ascent_rise([weight], losses, radius=0.5, steps=2) == [0.0, 0.0]


@pytest.mark.parametrize(("radius", "steps"), [(0.0, 1), (float("inf"), 1), (-1.0, 1), (0.1, 0)])
def test_settings_out_of_range_are_refused(radius, steps):
    weight, losses = quadratic([1.0], [1.0])
    with pytest.raises(UsageError, match="radius above 0"):
        ascent_rise([weight], losses, radius=radius, steps=steps)


def test_a_run_of_another_task_is_refused_by_its_task(monkeypatch, tmp_path):
    recipe = load_recipe("ptb-lstm", [])
    monkeypatch.setattr(minimum, "load_run", lambda _: SimpleNamespace(recipe=recipe))
    with pytest.raises(UsageError, match=r"run of an image classifier, but the task of .* is text-generation"):
        minimum.load_minimum(tmp_path)


def test_logistic_regression_has_the_eigenvalue_of_its_closed_form():
    """At weights 0 softmax gives 1/K everywhere, so the Hessian is (I/K − 11ᵀ/K²) ⊗ XᵀX/N."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randint(0, 3, (50,))
    settings = SharpnessSettings(eigenvalues=2, tolerance=1e-9, probes=1, radius=0.1, steps=2)

    found = measure_sharpness(model.eval(), ((x[:20], y[:20]), (x[20:], y[20:])), "absolute", settings)
    expected = torch.linalg.eigvalsh(x.T @ x / 50).flip(0) / 3
    assert found.eigenvalues == pytest.approx([float(expected[0])] * 2, rel=1e-6)  # twice: K − 1 equal directions
    assert found.loss == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-6)
    assert found.rise == max(found.rises) > 0
    assert torch.equal(model.weight, torch.zeros_like(model.weight))
