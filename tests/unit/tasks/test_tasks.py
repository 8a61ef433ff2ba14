"""Tasks are found by name, by a run, by a bundle, and from outside by an entry point."""

import pytest

from cpt_deploy.errors import RecipeError, UsageError
from cpt_deploy.recipe import load_recipe
from cpt_deploy.recipe.tasks import task_name, tasks
from cpt_deploy.tasks import SILENT, Task, image_classification, task_named, task_of_run, text_generation

OUTSIDE = """
class DepthEstimation:
    name, unit = "depth-estimation", "images"

    def knows(self, data):
        return data == "kitti"

TASK = DepthEstimation()
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An installed package that adds a task, as its wheel leaves it."""
    (tmp_path / "depth_task.py").write_text(OUTSIDE)
    info = tmp_path / "depth_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: depth-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cpt_deploy.tasks]\ndepth-estimation = depth_task:TASK\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    tasks._entries.pop("depth-estimation", None)


def test_names_are_pipeline_tags():
    assert task_named("image-classification") is image_classification.TASK
    assert task_named("text-generation") is text_generation.TASK
    assert all(task_named(name).name == name for name in tasks)
    with pytest.raises(UsageError, match="known task") as caught:
        task_named("text-genration")
    assert caught.value.hint.startswith("did you mean text-generation")


@pytest.mark.parametrize(
    ("data", "name"),
    [("digits", "image-classification"), ("ptb", "text-generation"), ("wikitext-2", "text-generation")],
)
def test_the_data_decide_where_the_recipe_leaves_it_to_them(data, name):
    assert task_name("auto", data) == name
    assert task_name("image-classification", data) == "image-classification"


def test_runs_and_bundles_say_their_task(tmp_path, shared_bundle):
    assert task_named(shared_bundle.task) is image_classification.TASK
    assert task_of_run(tmp_path) is image_classification.TASK
    (tmp_path / "recipe.yaml").write_text("data: {task: text-generation}")
    assert task_of_run(tmp_path) is text_generation.TASK


def test_a_task_without_a_check_of_its_data_says_so():
    with pytest.raises(UsageError, match="the task text-generation has no check of 'ptb'"):
        Task.check_data(text_generation.TASK, "ptb", None, SILENT)


def test_a_task_from_outside_has_a_name_of_its_own(outside, tmp_path):
    assert "depth-estimation" in tasks.names()
    assert task_named("depth-estimation").unit == "images"
    assert task_name("auto", "kitti") == "depth-estimation"
    (tmp_path / "recipe.yaml").write_text("data: {task: depth-estimation}")
    assert task_of_run(tmp_path).unit == "images"


def test_a_task_that_is_not_installed_is_an_error_of_the_recipe():
    assert "depth-estimation" not in tasks
    with pytest.raises(RecipeError, match=r"data\.task"):
        load_recipe("digits-quickstart", ["data.task=depth-estimation"])
