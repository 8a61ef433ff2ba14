import json
import shutil

import pytest
import torch

from cpt_deploy.bundle import ImageProcessor
from cpt_deploy.data import eval_loader, load_images
from cpt_deploy.errors import CheckpointError
from cpt_deploy.training import load_run, train
from cpt_deploy.training.evaluation import evaluate


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(recipe(), directory)
    return directory


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


def test_loaded_run_has_the_accuracy_of_its_report(run_dir):
    run = load_run(run_dir)
    processor = run.expect_processor(ImageProcessor)

    images = load_images("digits", split="test")
    result = evaluate(
        run.model,
        eval_loader(images, processor.preprocessing, 100),
        classes=len(processor.labels),
        device=torch.device("cpu"),
        step=0,
    )
    assert result.metrics == run.report.test.metrics
    assert result.loss == pytest.approx(run.report.test.loss, rel=1e-5)
    assert not run.model.training
    assert processor.labels == images.classes
    assert run.recipe.name == "small"


def test_loading_twice_gives_the_same_model_and_draws_no_random_numbers(run_dir):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second = load_run(run_dir), load_run(run_dir)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    assert torch.equal(first.model(x), second.model(x))
    assert first.weights_sha256 == second.weights_sha256
    assert torch.equal(torch.rand(1), expected)


def test_damaged_weights_are_found(run_dir):
    path = run_dir / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_run(run_dir)
    assert "resume" in caught.value.hint


def test_weights_can_be_made_again_from_the_checkpoint(run_dir, recipe):
    before = (run_dir / "model.safetensors").read_bytes()
    (run_dir / "model.safetensors").write_bytes(before[:100])
    (run_dir / "report.json").unlink()

    train(recipe(), run_dir, resume=True)

    assert (run_dir / "model.safetensors").read_bytes() == before
    load_run(run_dir)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("recipe.yaml", "no recipe"), ("report.json", "finished run"), ("model.safetensors", "weights")],
)
def test_missing_file_is_a_checkpoint_error(run_dir, name, reason):
    (run_dir / name).unlink()

    with pytest.raises(CheckpointError, match=reason):
        load_run(run_dir)


def test_report_that_is_none_is_a_checkpoint_error(run_dir):
    path = run_dir / "report.json"
    report = json.loads(path.read_text())

    for text, reason in (
        ("{", "whole report"),
        ("{}", "whole report"),
        (json.dumps({**report, "report_version": 99}), "format 99"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            load_run(run_dir)


def test_directory_without_a_run_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="Expected a run"):
        load_run(tmp_path / "nothing")
