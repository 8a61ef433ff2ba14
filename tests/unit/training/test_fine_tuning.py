"""Runs that begin with weights: what the first step has, what the run records, and that a resumed one checks it."""

import hashlib
import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from cpt_cli.main import main
from cpt_deploy.errors import DataError, RecipeError, RunInterruptedError, UsageError
from cpt_deploy.models import build_model
from cpt_deploy.onnx_graph.float_network import float_model
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import group_runs, load_run, plan_run, read_finished_run, train
from cpt_deploy.training.task import load_task

CPU = torch.device("cpu")
TWO_CLASSES = """
import numpy as np

def images(split):
    generator = np.random.default_rng(len(split))
    labels = np.arange(128) % 2
    pixels = generator.integers(0, 60, (128, 8, 8)) + 150 * labels[:, None, None]
    return pixels.astype(np.uint8), labels
"""


@pytest.fixture(scope="module")
def run_dir(recipe, tmp_path_factory):
    """A finished run on digits: ten classes."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train(recipe("train.epochs=1"), folder)
    return folder


@pytest.fixture
def two_classes(own_module):
    own_module("own_two_classes", TWO_CLASSES)
    return "data={name: own_two_classes:images}"


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(1)
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8), width=4)
    torch.save(network.state_dict(), tmp_path / "float.pt")
    return tmp_path / "float.pt"


def test_the_model_of_a_run_begins_with_the_file(recipe, file):
    task = load_task(recipe(f"model.weights={file}"), CPU)
    model = task.build_model().eval()
    weights = torch.load(file, weights_only=True)
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8), width=4)
    network.load_state_dict(weights)
    x = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(float_model(model)(x), network.eval()(x))
    assert task.pretrained.fresh == ()
    assert task.pretrained.tensors == len(weights)


def test_a_run_is_fine_tuned_with_a_new_head(recipe, run_dir, two_classes):
    task = load_task(recipe(f"model.weights={run_dir}", two_classes), CPU)
    state = task.build_model().state_dict()
    weights = load_file(run_dir / "model.safetensors")
    names = [name for name in weights if name != "bits" and not name.startswith("network.activation_quantizers")]
    taken = [name for name in names if not name.startswith("network.fc")]
    assert set(names) - set(taken) == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(state[name], weights[name]) for name in taken)
    assert state["network.fc.weight"].shape[0] == 2
    assert float(state["network.activation_quantizers.x.batches"]) == 0.0  # ranges are those of the new images
    assert task.pretrained.fresh == ("fc.weight", "fc.bias")
    assert task.pretrained.classes == 10


def test_a_run_of_a_network_that_prepare_takes_apart_is_a_beginning_too(tmp_path, own_module, recipe):
    """Attention's projections are layers of their own in a run, and one matrix in the float network."""
    own_module(
        "own_vit",
        "from torchvision.models import VisionTransformer\n"
        "def build(num_classes, input_size):\n"
        "    return VisionTransformer(image_size=input_size[0], patch_size=4, num_layers=1, num_heads=2, "
        "hidden_dim=8, mlp_dim=16, num_classes=num_classes)\n",
    )
    own_module("own_two_classes", TWO_CLASSES)
    vit = ("model={name: own_vit:build}", "data.input.channels=3", "train.epochs=null", "train.steps=2")
    train(recipe(*vit), tmp_path / "first")
    task = load_task(recipe(*vit, f"model.weights={tmp_path / 'first'}", "data.name=own_two_classes:images"), CPU)
    state, weights = task.build_model().state_dict(), load_file(tmp_path / "first" / "model.safetensors")
    assert task.pretrained.fresh == ("heads.head.weight", "heads.head.bias")
    assert any("in_proj" in name for name in weights)
    taken = [
        name
        for name in weights
        if name != "bits" and "heads.head" not in name and not name.endswith((".low", ".high", ".batches"))
    ]
    assert len(taken) == task.pretrained.tensors
    assert all(torch.equal(state[name], weights[name]) for name in taken)


def test_the_run_records_the_weights_and_does_not_need_them_afterwards(recipe, file, tmp_path, two_classes):
    report = train(recipe(f"model.weights={file}", two_classes), tmp_path / "run")
    recorded = load_recipe(tmp_path / "run" / "recipe.yaml").model
    assert recorded.weights == str(file)
    assert report.model["weights"]["sha256"] == recorded.weights_sha256
    assert report.model["weights"]["fresh"] == ("fc.weight", "fc.bias")
    assert report.figure > 0.9
    file.unlink()
    assert load_run(tmp_path / "run").report.figure == report.figure


def test_a_resumed_run_checks_them_and_may_find_them_elsewhere(recipe, file, tmp_path, train_until, interrupt, outcome):
    settings = f"model.weights={file}"
    train(recipe(settings), tmp_path / "whole")
    with pytest.raises(RunInterruptedError):
        train_until(tmp_path / "parts", 5, interrupt(), settings)
    moved = tmp_path / "moved.pt"
    shutil.move(file, moved)
    begun = load_recipe(tmp_path / "parts" / "recipe.yaml")
    with pytest.raises(DataError, match="Expected the weights to begin with at"):
        train(begun, tmp_path / "parts", resume=True)
    network = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8), width=4)
    torch.save(network.state_dict(), file)
    with pytest.raises(DataError, match="but they are others") as raised:
        train(begun, tmp_path / "parts", resume=True)
    assert "model.weights=PATH" in raised.value.hint
    elsewhere = load_recipe(tmp_path / "parts" / "recipe.yaml", [f"model.weights={moved}"])
    train(elsewhere, tmp_path / "parts", resume=True)
    parts, whole = outcome(tmp_path / "parts"), outcome(tmp_path / "whole")
    parts["report"]["model"]["weights"].pop("file"), whole["report"]["model"]["weights"].pop("file")
    assert parts == whole


def test_weights_decide_the_result(recipe, file, tmp_path, finished, outcome):
    train(recipe(f"model.weights={file}"), tmp_path / "run")
    assert outcome(tmp_path / "run")["weights"] != finished()["weights"]


def test_compared_runs_are_told_apart_by_their_weights(recipe, file, run_dir, tmp_path):
    train(recipe("train.epochs=1", f"model.weights={file}"), tmp_path / "run")
    fresh, tuned = group_runs(read_finished_run(path) for path in (run_dir, tmp_path / "run"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (fresh.label, tuned.label) == ("small", f"weights_sha256 {digest[:12]}…")


def test_a_digest_without_weights_and_weights_of_text_are_refused(recipe, file, tmp_path):
    with pytest.raises(RecipeError, match="Expected weights with weights_sha256"):
        load_recipe(None, [f"model.weights_sha256={'a' * 64}"])
    with pytest.raises(RecipeError, match="weights_sha256"):
        load_recipe(None, [f"model.weights={file}", "model.weights_sha256=12"])
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 200)
    words = load_recipe(None, [f"data.name={tmp_path / 'text.txt'}", "model.name=lstm-lm", f"model.weights={file}"])
    with pytest.raises(UsageError, match="random weights"):
        plan_run(words, tmp_path / "run")


def test_a_dry_run_shows_digest_and_fresh_head(file, two_classes, capsys, tmp_path):
    words = ["train", "digits-quickstart", "model.args.width=4", f"model.weights={file}", two_classes, "--dry-run"]
    words += ["--out", str(tmp_path / "run")]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fc.weight and fc.bias newly initialised: the file has 10 classes" in shown
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    digest = document["recipe"]["model"]["weights_sha256"]
    assert digest[:12] in shown
    assert document["pretrained"]["sha256"] == digest
    assert document["pretrained"]["fresh"] == ["fc.weight", "fc.bias"]
    assert not (tmp_path / "run").exists()


WITH_A_PLACE = """
from torch import nn

def build(num_classes, head=False):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
    network.AuxLogits = nn.Linear(4, num_classes) if head else None
    return network
"""


@pytest.mark.parametrize("extra", [False, True])
def test_auxiliary_heads_are_left_out_and_named_and_nothing_else_is(extra, own_module, tmp_path, capsys):
    own_module("own_with_a_place", WITH_A_PLACE)
    weights = importlib.import_module("own_with_a_place").build(10, head=True).state_dict()
    torch.save({**weights, **({"extra.weight": torch.zeros(2)} if extra else {})}, tmp_path / "net.pth")
    words = ["train", "digits-quickstart", "model={name: own_with_a_place:build}", f"model.weights={tmp_path}/net.pth"]
    words += ["--smoke", "--out", str(tmp_path / "run")]
    if extra:
        assert main(words) == 2
        assert "1 are not its own: extra.weight" in capsys.readouterr().err
        return
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 tensors of" in shown
    assert "AuxLogits left out: auxiliary heads, which only help training" in shown
    recorded = json.loads((tmp_path / "run" / "report.json").read_text())["model"]["weights"]
    assert (recorded["left_out"], recorded["tensors"], recorded["fresh"]) == (["AuxLogits"], 4, [])


def test_published_weights_that_read_another_normalisation_are_told_of(own_module, tmp_path, capsys):
    """squeezenet1_1 stands for all of torchvision's; which normalisation GoogLeNet's read is tested with the model."""
    network = build_model("torchvision/squeezenet1_1", num_classes=10, in_channels=3, input_size=(32, 32))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    words = ["train", "digits-quickstart", "model={name: torchvision/squeezenet1_1}", "data.input.channels=3"]
    words += ["data.input.size=[32,32]", f"model.weights={tmp_path}/net.pth", "--dry-run"]
    assert main(words) == 0
    warned = " ".join(capsys.readouterr().err.split())
    asked = ["data.input.mean=[0.485,0.456,0.406]", "data.input.std=[0.229,0.224,0.225]"]
    assert f"of another normalisation; if they are what {tmp_path}/net.pth holds: {' '.join(asked)}" in warned
    assert main([*words, *asked]) == 0
    assert "normalisation" not in capsys.readouterr().err


def test_weights_of_another_network_are_one_line(file, capsys):
    assert main(["train", "digits-quickstart", "model.name=resnet20", f"model.weights={file}", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "to be those of resnet20" in error
    assert "Traceback" not in error
