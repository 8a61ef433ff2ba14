"""The min_bits that a run gets when its recipe leaves them to the length of the run."""

import json
import statistics
from pathlib import Path

import pytest

from cpt_deploy.precision import LOSSES, RECOMMENDED_LOSS, build_schedule, is_short
from cpt_deploy.precision.recommended import LONG_EPOCHS
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.precision import PrecisionSettings

STUDY = Path(__file__).parents[3] / "benchmarks" / "results" / "learning_study.json"
IMAGES = {"digits": 1_442, "fashion": 60_000, "few-fashion": 2_000}
BATCH = 64


@pytest.mark.parametrize(
    ("steps", "epochs", "min_bits"), [(440, 20, 5), (999, 100, 5), (2_000, 29, 5), (1_000, 30, 3), (64_000, 164, 3)]
)
def test_a_recipe_leaves_min_bits_to_the_length_of_the_run(steps, epochs, min_bits):
    settings = Recipe().precision
    assert settings.min_bits is None
    assert settings.for_run(steps, epochs).bounds == (min_bits, 8)
    assert settings.bounds == (3, 8)  # of a long run


@pytest.mark.parametrize(("max_bits", "short", "long"), [(8, 5, 3), (6, 3, 3), (4, 3, 3), (2, 2, 2), (32, 29, 3)])
def test_in_short_runs_min_bits_are_near_max_bits(max_bits, short, long):
    settings = PrecisionSettings(max_bits=max_bits)
    assert settings.for_run(100, 1).bounds == (short, max_bits)
    assert settings.for_run(10_000, 100).bounds == (long, max_bits)


@pytest.mark.parametrize(
    "settings",
    [
        PrecisionSettings(min_bits=3),
        PrecisionSettings(schedule="progressive"),
        PrecisionSettings(schedule="piecewise", points=((0.0, 3), (0.5, 8))),
        PrecisionSettings(schedule="no_such_module:schedule"),
    ],
    ids=["given", "progressive", "piecewise", "one's own"],
)
def test_given_min_bits_and_those_of_schedules_without_cycles_stay(settings):
    assert settings.for_run(1, 1) is settings
    assert settings.bounds == (3, 8)


def differences():
    """Mean difference to static 8 bits in points of accuracy, by images, steps and kind, of cells with all 8 seeds."""
    runs, found = json.loads(STUDY.read_text())["runs"], {}
    for cell, run in runs.items():
        name, steps, kind, seed = cell.split("/")
        if name in IMAGES and f"{name}/{steps}/static8/{seed}" in runs:
            lost = run["accuracy"] - runs[f"{name}/{steps}/static8/{seed}"]["accuracy"]
            found.setdefault((name, int(steps), kind), []).append(100 * lost)
    return {cell: statistics.fmean(values) for cell, values in found.items() if len(values) == 8}


def most_bits(schedule: str, steps: int) -> int:
    """Return the most bits of a run of the study with a schedule from 3 to 8 bits."""
    built = build_schedule(schedule, min_bits=3, max_bits=8, cycles=8)
    return max(built.bits_at(step, steps) for step in range(steps))


def epochs(name: str, steps: int) -> float:
    return steps / (IMAGES[name] // BATCH)


def test_the_bound_in_epochs_lies_where_the_sign_turns():
    cpt = {cell[:2]: gained for cell, gained in differences().items() if cell[0] != "digits" and cell[2] == "cpt"}
    assert len(cpt) == 9
    losing = [epochs(*cell) for cell, gained in cpt.items() if gained < 0]
    gaining = [epochs(*cell) for cell, gained in cpt.items() if gained > 0]
    assert 10 < max(losing) < 11 < LONG_EPOCHS < min(gaining) < 33


def test_the_figures_of_the_warning_are_those_of_the_study():
    lost = {"cosine": 0.0, "rex": 0.0}
    for (name, steps, kind), gained in differences().items():
        schedule = {"cpt": "cosine", "rex": "rex"}.get(kind)
        if schedule and is_short(steps, epochs(name, steps)) and most_bits(schedule, steps) == 8:
            lost[schedule] = max(lost[schedule], -gained)
    assert {schedule: round(points, 1) for schedule, points in lost.items()} == LOSSES


def test_between_5_and_8_bits_less_is_lost_in_short_runs_and_won_in_long_ones():
    short, long = {}, {}
    for (name, steps, kind), gained in differences().items():
        (short if is_short(steps, epochs(name, steps)) else long).setdefault(kind, []).append(gained)
    assert round(-min(short["cpt-5-8"]), 1) == RECOMMENDED_LOSS
    assert statistics.fmean(short["cpt-5-8"]) > statistics.fmean(short["cpt"])
    assert statistics.fmean(long["cpt"]) > statistics.fmean(long["cpt-5-8"]) > 0
