"""Grid files: which runs they stand for, and what is said about those that are none."""

import itertools

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_deploy.errors import CptError, DataError, RecipeError, UsageError
from cpt_deploy.recipe import load_grid, load_recipe, save_recipe
from cpt_deploy.recipe.grid import _text

WHOLE = """
recipes: [digits-quickstart]
common: {train.epochs: 1, model.args.width: 4}
variants:
  static8: {precision.schedule: static}
  cpt3-8: {}
vary:
  optimizer.lr: [0.1, 0.05]
seeds: [0, 1]
"""


def write(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def test_a_grid_is_the_product_of_its_parts(tmp_path):
    points = load_grid(write(tmp_path, WHOLE))

    assert [point.name for point in points] == [
        f"{variant}-lr{rate}-seed{seed}"
        for variant, rate, seed in itertools.product(("static8", "cpt3-8"), (0.1, 0.05), (0, 1))
    ]
    last = points[-1]
    assert last.recipe.name == last.name
    assert (last.recipe.seed, last.recipe.optimizer.lr, last.recipe.precision.schedule) == (1, 0.05, "cosine")
    assert points[0].recipe.precision.schedule == "static"
    assert {point.recipe.train.epochs for point in points} == {1}
    assert all(load_recipe(point.source, point.overrides) == point.recipe for point in points)


def test_recipes_are_presets_or_files_beside_the_grid(tmp_path):
    save_recipe(load_recipe(None, ["train.batch_size=32"]), tmp_path / "mine.yaml")
    points = load_grid(write(tmp_path, "recipes: [digits-quickstart, mine.yaml]"))
    assert [(point.name, point.recipe.train.batch_size) for point in points] == [
        ("digits-quickstart-seed0", 64),
        ("mine-seed0", 32),
    ]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3, unique=True), st.integers(1, 3), st.integers(0, 2))
def test_the_number_of_runs_is_the_product(tmp_path_factory, seeds, values, variants):
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    rates = [0.1 / (number + 1) for number in range(values)]
    named = {f"v{number}": {} for number in range(variants)}
    path.write_text(f"recipes: [digits-quickstart]\nvary: {{optimizer.lr: {rates}}}\nvariants: {named}\nseeds: {seeds}")
    points = load_grid(path)
    assert len({point.name for point in points}) == len(points) == len(seeds) * values * max(variants, 1)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("recipes: []", RecipeError, "recipes"),
        ("recipe: [digits-quickstart]", RecipeError, "did you mean recipes"),
        ("[1, 2]", RecipeError, "a list"),
        ("recipes: [", RecipeError, "Expected YAML"),
        ("recipes: [digits-quickstrat]", UsageError, "known preset"),
        ("recipes: [folder/missing.yaml]", DataError, "folder/missing.yaml"),
        ("recipes: [digits-quickstart]\ncommon: {optimiser.lr: 1}", RecipeError, "optimiser"),
        ("recipes: [digits-quickstart]\nvary: {optimizer.lr: []}", RecipeError, "optimizer.lr"),
        ("recipes: [digits-quickstart]\nseeds: [1, 1]", UsageError, "seed1 more than once"),
        ("recipes: [digits-quickstart]\nvary: {seed: [1, 2]}", UsageError, "no seed in vary"),
        ("recipes: [digits-quickstart]\ncommon: {seed: 7}", UsageError, "no seed in common"),
        ("recipes: [digits-quickstart]\nvariants: {a: {name: b}}", UsageError, r"no name in variants\.a"),
        ("recipes: [digits-quickstart]\ncommon: {train: {steps: 3}}", UsageError, "the whole of train"),
        (
            "recipes: [digits-quickstart]\nvariants: {a: {train.steps: 3}}\nvary: {train.steps: [4]}",
            UsageError,
            r"train\.steps in variants\.a or in vary",
        ),
    ],
)
def test_grids_that_are_none_are_one_clear_error(tmp_path, text, error, message):
    with pytest.raises(CptError, match=message) as caught:
        load_grid(write(tmp_path, text))
    assert isinstance(caught.value, error)


def test_a_grid_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="readable grid"):
        load_grid(tmp_path / "grid.yaml")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_a_setting_of_a_grid_reaches_the_command_as_it_is(value):
    assert yaml.safe_load(_text(value)) == value
