"""Directions and the loss along them, against closed forms; files that an interruption leaves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cpt_deploy.analysis import Grid, LandscapeFiles, LandscapeSettings
from cpt_deploy.analysis.directions import filter_normalized, random_direction
from cpt_deploy.analysis.landscape import Landscape, Point, Value, landscape_of
from cpt_deploy.errors import DataError, UsageError


def weights(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": scale * torch.randn(4, 3, 3, 3, generator=generator),
        "norm.weight": torch.rand(4, generator=generator),
        "fc.weight": scale * torch.randn(2, 4, generator=generator),
        "fc.bias": torch.randn(2, generator=generator),
    }


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_each_filter_of_a_direction_has_the_norm_of_the_weights(seed, scale):
    here = weights(scale)
    direction = filter_normalized(random_direction(here, seed=seed, number=0), here)

    for name in ("conv.weight", "fc.weight"):
        torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), here[name].flatten(1).norm(dim=1))
    for name in ("norm.weight", "fc.bias"):  # the code of Li et al. leaves them in place: ignore='biasbn'
        assert not direction[name].any()


def test_directions_follow_seed_number_and_name_alone():
    one, two = weights(), {name: 3 * value for name, value in reversed(weights().items())}
    first, second = (random_direction(here, seed=5, number=1) for here in (one, two))

    assert all(torch.equal(first[name], second[name]) for name in one)
    for other in (random_direction(one, seed=5, number=0), random_direction(one, seed=6, number=1)):
        assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert torch.stack([first["conv.weight"].mean(), first["conv.weight"].std() - 1]).abs().max() < 0.3


def test_a_filter_of_zeros_stays():
    here = {"w": torch.zeros(2, 3)}
    assert torch.equal(filter_normalized(random_direction(here, seed=0, number=0), here)["w"], here["w"])


@pytest.fixture
def linear():
    """A linear classifier, whose logits along directions are sums that can be written down."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).eval()
    x, y = torch.randn(30, 6), torch.randint(0, 3, (30,))
    return model, ((x[:20], y[:20]), (x[20:], y[20:])), x, y


@pytest.mark.parametrize("jobs", [1, 3])
def test_losses_are_those_of_the_moved_weights(linear, jobs):
    model, batches, x, y = linear
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    grid = Grid(points=3, extent=0.5)
    found = landscape_of(model, batches, grid, seed=7, jobs=jobs)

    one, two = (filter_normalized(random_direction(here, seed=7, number=n), here) for n in (0, 1))
    for point, value in found.values.items():
        logits = x @ (here["weight"] + point.x * one["weight"] + point.y * two["weight"]).T + here["bias"]
        assert value.loss == pytest.approx(float(functional.cross_entropy(logits, y)), rel=1e-5)
        assert value.accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert [len(row) for row in found.losses] == [3, 3, 3]
    assert found.losses[1][1] == found.centre.loss
    assert found.mean_rise == pytest.approx(sum(map(sum, found.losses)) / 9 - found.centre.loss)
    assert all(torch.equal(p, here[name]) for name, p in model.named_parameters())


def test_a_line_is_the_middle_row_of_the_plane(linear):
    model, batches, _, _ = linear
    line = landscape_of(model, batches, Grid(points=5, dimensions=1))
    plane = landscape_of(model, batches, Grid(points=5))
    assert line.losses == [plane.losses[2]]


def test_known_points_are_not_measured_again(linear):
    model, batches, _, _ = linear
    grid, told = Grid(points=3), []
    known = {Point(0.0, 0.0): Value(123.0, 0.5), Point(1.0, -1.0): Value(7.0, 0.1)}
    found = landscape_of(model, batches, grid, known=known, on_point=lambda point, _: told.append(point))

    assert found.centre == Value(123.0, 0.5)
    assert sorted(told) == sorted(set(grid) - set(known))


@pytest.mark.parametrize("settings", [{"points": 4}, {"points": 1}, {"extent": 0.0}, {"dimensions": 3}])
def test_grids_that_are_none_are_refused(settings):
    with pytest.raises(UsageError, match="Expected"):
        Grid(**settings)


def settings(**changes):
    values = {"grid": Grid(points=3), "seed": 0, "split": "train", "images": 10, "runs": {"a": "00", "b": "11"}}
    return LandscapeSettings(**{**values, **changes})


def test_points_are_there_after_an_interruption(tmp_path):
    files = LandscapeFiles(tmp_path / "out", settings())
    files.append("a", Point(0.0, 0.0), Value(0.1, 0.9))
    files.append("b", Point(1 / 3, -1.0), Value(2 / 3, 0.5))
    with files.table.open("a") as file:
        file.write("b,0.0,0.0,0.2")  # cut off by the interruption

    again = LandscapeFiles(tmp_path / "out", settings())
    assert again.known == {"a": {Point(0.0, 0.0): Value(0.1, 0.9)}, "b": {Point(1 / 3, -1.0): Value(2 / 3, 0.5)}}
    again.append("b", Point(0.0, 0.0), Value(0.2, 0.5))
    assert len(LandscapeFiles(tmp_path / "out", settings()).known["b"]) == 2


def test_finished_points_are_read_again_whatever_the_names_of_runs(tmp_path):
    named = settings(runs={'a,"b"': "00"}, grid=Grid(points=3, dimensions=1))
    files = LandscapeFiles(tmp_path, named)
    points = {point: Value(0.25, 0.5) for point in named.grid}
    files.finish({'a,"b"': Landscape(named.grid, points)})
    assert LandscapeFiles(tmp_path, named).known == {'a,"b"': points}


def test_other_settings_are_refused(tmp_path):
    LandscapeFiles(tmp_path, settings())
    with pytest.raises(UsageError, match="seed was 0, is 1"):
        LandscapeFiles(tmp_path, settings(seed=1))
    with pytest.raises(UsageError, match="runs was"):
        LandscapeFiles(tmp_path, settings(runs={"a": "22"}))


def test_damaged_files_are_one_line(tmp_path):
    files = LandscapeFiles(tmp_path, settings())
    files.table.write_text("run,x,y,loss,accuracy\na,zero,0,1,1\n")
    with pytest.raises(DataError, match="points of a landscape"):
        LandscapeFiles(tmp_path, settings())
    (tmp_path / "landscape.json").write_text("{")
    with pytest.raises(DataError, match="settings of a landscape"):
        LandscapeFiles(tmp_path, settings())
