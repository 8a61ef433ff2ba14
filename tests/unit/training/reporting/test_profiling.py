import gzip
import json

import pytest

from cpt_deploy.training import train
from cpt_deploy.training.reporting.profiling import SKIPPED_STEPS


@pytest.fixture(scope="module", params=["modules", "float32"])
def profiled(request, recipe, tmp_path_factory):
    """A profiled run module by module, and one on codes."""

    class Profiled:
        def __getattr__(self, name):
            return lambda value: setattr(self, f"told_{name}", value)

    directory, told = tmp_path_factory.mktemp("profile") / "run", Profiled()
    settings = ("train.epochs=1", "train.calibration_batches=0", f"train.compute={request.param}")
    train(recipe(*settings), directory, reporter=told, profile_steps=3)
    return told.told_profiled, directory, settings


def test_parts_of_a_step_add_up_to_the_step(profiled):
    report, _, settings = profiled

    assert report.steps == 3
    assert sum(report.seconds.values()) == pytest.approx(report.step_seconds, rel=0.05)
    assert {"convolution and linear layers", "quantization of activations", "optimizer", "data"} <= set(report.seconds)
    apart = {"quantization of weights", "quantization of gradients", "BatchNorm"}
    together = {"BatchNorm, ReLU and quantization in one"}
    assert (apart if "train.compute=modules" in settings else together) <= set(report.seconds)


def test_trace_is_one_that_viewers_read(profiled):
    report, directory, settings = profiled

    with gzip.open(directory / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert report.trace == directory / "trace.json.gz"
    steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep")}
    assert len(steps) == 3
    name = "quantization of activations" if "train.compute=modules" in settings else "_LayerFunction"
    assert any(event.get("name") == name for event in events)


def test_profile_changes_nothing(recipe, profiled, tmp_path):
    _, directory, settings = profiled
    train(recipe(*settings), tmp_path / "run")

    assert (directory / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


def test_a_run_of_fewer_steps_than_are_skipped_has_no_profile(recipe, tmp_path):
    train(recipe(f"train.steps={SKIPPED_STEPS}"), tmp_path / "run", profile_steps=3)

    assert (tmp_path / "run" / "report.json").is_file()
    assert not (tmp_path / "run" / "trace.json.gz").exists()


def test_a_profile_of_more_steps_than_there_are_is_the_mean_of_those(recipe, tmp_path):
    told = []

    class Profiled:
        def __getattr__(self, name):
            return lambda value: told.append((name, value))

    train(recipe("train.epochs=null", "train.steps=6"), tmp_path / "run", reporter=Profiled(), profile_steps=60)
    [report] = [value for name, value in told if name == "profiled"]
    assert report.steps == 6 - SKIPPED_STEPS
