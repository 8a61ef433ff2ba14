import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.errors import DataError, RecipeError, UsageError
from cpt_deploy.recipe import Recipe, experiments, load_recipe, preset_names, save_recipe
from cpt_deploy.recipe.loading import preset_path


def test_no_source_gives_the_defaults():
    assert load_recipe(None) == Recipe()


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in experiments()])
def test_preset_is_valid_and_says_how_to_run_it(name):
    recipe = load_recipe(name)

    assert recipe.name == name
    assert f"cpt train {name}" in preset_path(name).read_text()


def test_paper_preset_has_the_authors_settings():
    recipe = load_recipe("cifar10-paper")

    assert (recipe.train.steps, recipe.train.batch_size) == (64000, 128)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert [fraction * 64000 for fraction in recipe.lr.milestones] == [32000, 48000]
    assert (recipe.precision.min_bits, recipe.precision.max_bits, recipe.precision.cycles) == (3, 8, 32)
    assert (recipe.precision.grad_schedule, recipe.precision.grad_max_bits) == ("static", 8)


def test_file_goes_over_defaults_and_overrides_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\ntrain: {epochs: 5, batch_size: 32}\n")

    recipe = load_recipe(path, ["train.batch_size=16", "optimizer.lr=1e-3", "name=mine"])

    assert (recipe.seed, recipe.train.epochs, recipe.train.batch_size) == (3, 5, 16)
    assert recipe.optimizer.lr == 0.001
    assert recipe.optimizer.momentum == Recipe().optimizer.momentum


def test_steps_replace_the_epochs_of_the_file_and_the_other_way_round():
    by_steps = load_recipe("digits-quickstart", ["train.steps=5"]).train
    by_epochs = load_recipe("cifar10-paper", ["train.epochs=2"]).train

    assert (by_steps.steps, by_steps.epochs) == (5, None)
    assert (by_epochs.steps, by_epochs.epochs) == (None, 2)


def test_override_reaches_into_lists_and_replaces_them():
    assert load_recipe("cifar10-paper", ["data.augment.0.padding=2"]).data.augment[0].parameters == {"padding": 2}
    assert load_recipe("cifar10-paper", ["data.augment=[]"]).data.augment == ()


def test_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")

    assert load_recipe(path) == Recipe()


def test_all_mistakes_are_reported_at_once_with_lines_and_near_names(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("sede: 1\nmodel:\n  nme: tiny\nprecision:\n  max_bts: 6\ntrain: {batch_size: 0}\nmin_bits: 3\n")

    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["optimizer.name=adam", "nonsense"])

    message = str(caught.value)
    assert "7 settings are wrong" in message
    assert "sede (line 1): unknown setting; did you mean seed" in message
    assert "model.nme (line 3): unknown setting; did you mean model.name" in message
    assert "precision.max_bts (line 5): unknown setting; did you mean precision.max_bits" in message
    assert "train.batch_size (line 6)" in message
    assert "min_bits (line 7): unknown setting; did you mean precision.min_bits" in message
    assert "optimizer.name: Expected 'sgd' or 'adamw', but got 'adam'" in message
    assert "nonsense: expected the form" in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.epochs", "form section.key=value"),
        ("=3", "form section.key=value"),
        ("a..b=3", "form section.key=value"),
        ("name.first=3", "is a value, not a section"),
        ("data.augment.7.padding=3", "is a value, not a section"),
        ("data.augment.x=3", "expected an index below 1"),
        ("seed=[1", "expected a YAML value"),
        ("seed=-1", "seed: Expected at least 0, but got -1"),
        ("data.input.size=big", r"data\.input\.size: Expected a height and width as 64, 224x160 or .*, but got 'big'"),
        ("data.input.size=0", "Expected a height and width"),
        ("data.input.size=[1, 2, 3]", "Expected a height and width"),
        ("train.epochs=many", "train.epochs: Expected an integer, but got 'many'"),
        ("train.epochs=1.5", "train.epochs: Expected an integer, but got 1.5"),
        ("optimizer.lr=fast", "optimizer.lr: Expected a number, but got 'fast'"),
        ("train.swa.enabled=perhaps", "Expected true or false, but got 'perhaps'"),
        ("lr.milestones=0.5", r"Expected a list as \[a, b\], but got 0.5"),
        ("train=3", "train: Expected entries as {key: value}, but got 3"),
        ("name=a/b", "name: Expected a name of letters, digits"),
        ("precision.points=[[0]]", "precision.points.0.1: Expected a value, but got none"),
    ],
)
def test_override_that_cannot_be_applied_is_named(override, reason):
    with pytest.raises(RecipeError, match=reason):
        load_recipe("digits-quickstart", [override])


def test_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("train:\n  epochs: 1\n  epochs: 2\n")

    with pytest.raises(RecipeError, match=r"train\.epochs \(line 3\): given twice, first in line 2"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "Expected YAML"),
        ("- 1\n- 2\n", "'key: value', but got a list"),
        ("!!python/object/apply:os.system ['true']", "Expected YAML"),
    ],
)
def test_file_that_is_no_recipe_is_refused(tmp_path, text, reason):
    path = tmp_path / "bad.yaml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=reason):
        load_recipe(path)


def test_missing_file_and_unknown_preset_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="found none"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="known preset") as caught:
        load_recipe("digits-quikstart")
    assert "digits-quickstart" in caught.value.hint


def test_binary_file_is_a_data_error(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00name")

    with pytest.raises(DataError, match="readable recipe"):
        load_recipe(path)


@given(
    seed=st.integers(0, 2**31 - 1),
    lr=st.floats(1e-6, 10),
    bits=st.lists(st.integers(2, 8), min_size=2, max_size=2).map(sorted),
    milestones=st.lists(st.floats(0, 1), max_size=4, unique=True).map(sorted),
)
def test_saved_recipe_reads_back_as_it_was(tmp_path_factory, seed, lr, bits, milestones):
    recipe = Recipe.model_validate(
        {
            "seed": seed,
            "optimizer": {"lr": lr},
            "precision": {"min_bits": bits[0], "max_bits": bits[1]},
            "lr": {"milestones": milestones},
            "data": {"augment": [{"name": "random_crop", "padding": 1}]},
        }
    )
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"

    save_recipe(recipe, path)

    assert load_recipe(path) == recipe
    assert [entry.name for entry in path.parent.iterdir()] == ["recipe.yaml"]


def test_saving_to_a_place_that_is_none_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="Expected to write the recipe"):
        save_recipe(Recipe(), tmp_path / "no" / "recipe.yaml")


def test_reading_recipes_loads_no_torch():
    code = "import sys, cpt_deploy.recipe as r; r.load_recipe('digits-quickstart'); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path.cwd()).returncode == 0
