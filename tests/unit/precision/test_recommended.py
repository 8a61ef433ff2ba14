"""The schedule that a run gets when its recipe leaves the choice to the length of the run."""

import pytest

from cpt_deploy.precision import RECOMMENDED, recommended_schedule, relative_cost
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.precision import PrecisionSettings


def test_a_recipe_leaves_the_choice_to_the_length_of_the_run():
    settings = Recipe().precision
    assert settings.schedule == RECOMMENDED
    for steps in (1, 440, 1_000_000):
        assert settings.for_steps(steps).schedule == recommended_schedule(steps)


def test_a_chosen_schedule_stays():
    settings = PrecisionSettings(schedule="rex")
    assert settings.for_steps(1) is settings


def test_longer_runs_save_no_less():
    saved = [
        1 - relative_cost(settings.forward_schedule(), settings.backward_schedule(), steps)
        for steps in (640, 6_400, 64_000)
        if (settings := PrecisionSettings(cycles=8).for_steps(steps))
    ]
    assert saved == pytest.approx(sorted(saved), abs=0.01)
    assert saved[-1] == pytest.approx(0.3667, abs=0.001)  # the paper's schedule, and the saving that it prints
