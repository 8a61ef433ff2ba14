import pytest

from cpt_deploy.errors import CheckpointError, DataError, UsageError
from cpt_deploy.recipe import Recipe, load_recipe
from cpt_deploy.training import RunDirectory


def changed(**sections):
    values = Recipe().model_dump()
    for name, settings in sections.items():
        values[name] = {**values[name], **settings} if isinstance(settings, dict) else settings
    return Recipe.model_validate(values)


def test_new_directory_gets_the_recipe(tmp_path):
    directory = RunDirectory(tmp_path / "runs" / "one")

    directory.begin(Recipe())

    assert load_recipe(directory.recipe) == Recipe()
    assert directory.last.parent.is_dir()


def test_empty_directory_will_do(tmp_path):
    RunDirectory(tmp_path).begin(Recipe())

    assert (tmp_path / "recipe.yaml").is_file()


def test_what_a_run_left_that_broke_off_while_it_began_will_do(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".recipe.yaml.partial").touch()
    directory.begin(load_recipe("digits-quickstart"))
    assert directory.recipe.is_file()
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "checkpoints" / "last.safetensors").touch()
    with pytest.raises(UsageError, match="not empty"):
        RunDirectory(tmp_path / "other").check_new()


@pytest.mark.parametrize("kind", ["used", "file"])
def test_directory_in_use_is_left_alone(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "used":
        path.mkdir()
        (path / "note.txt").write_text("mine")
    else:
        path.write_text("mine")

    with pytest.raises(UsageError, match="not empty") as caught:
        RunDirectory(path).begin(Recipe())
    assert "--resume" in caught.value.hint


def test_directory_that_cannot_be_made_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="Expected to write the run"):
        RunDirectory(tmp_path / "file" / "run").begin(Recipe())


def test_same_recipe_may_resume_on_another_machine(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(Recipe())

    directory.check_resumable(Recipe())
    directory.check_resumable(changed(data={"root": "/elsewhere", "workers": 3}, train={"device": "cuda"}))


def test_changed_settings_are_all_listed(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(Recipe())

    with pytest.raises(UsageError) as caught:
        directory.check_resumable(changed(seed=5, optimizer={"lr": 0.2}))
    assert "seed was 0, is 5" in str(caught.value)
    assert "optimizer.lr was 0.1, is 0.2" in str(caught.value)


def test_directory_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="has no recipe"):
        RunDirectory(tmp_path).check_resumable(Recipe())
