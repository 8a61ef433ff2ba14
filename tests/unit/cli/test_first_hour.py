"""The first hour at the terminal: own images without splits, an own network, and commands that find the rest alone."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.data import load_images
from cpt_deploy.recipe import load_recipe
from cpt_deploy.workflows import bundle_at, run_at

COLOURS = ("blue", "green", "red")
NETWORK = """
from torch import nn
from layers import convolution

def build(num_classes, in_channels, width=6):
    features = nn.Sequential(convolution(in_channels, width), convolution(width, width))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
"""
LAYERS = """
from torch import nn

def convolution(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a space in its name: photos by class, a network in a file, and a run that was trained with both."""
    folder = tmp_path_factory.mktemp("first") / "my work"
    random = np.random.default_rng(0)
    for channel, colour in enumerate(reversed(COLOURS)):
        (folder / "my photos" / colour).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / "my photos" / colour / f"{number}.png")
    (folder / "net.py").write_text(NETWORK)
    (folder / "layers.py").write_text(LAYERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["data.name=my photos", "model.name=net.py:build", "data.input.size=8x8", "data.augment=[hflip]"]
        short = ["name=mine", "train.epochs=4", "train.batch_size=8", "precision.cycles=2", "optimizer.lr=0.05"]
        assert main(["train", *words, *short, "train.calibration_batches=3", "-q"]) == 0
        assert main(["export", "mine", "-q"]) == 0
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs a command line in the folder; returns its exit code, stdout and the lines on stderr."""
    monkeypatch.chdir(place)

    def call(*words):
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return call


def hinted(err):
    return shlex.split(next(line for line in err if line.startswith("next: ")).removeprefix("next: cpt "))


def test_a_folder_without_splits_is_divided_in_the_same_way_each_time(place):
    train, test = (load_images(place / "my photos", split=split) for split in ("train", "test"))

    assert (len(train), len(test)) == (24, 6)
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert set(train.paths) | set(test.paths) == set((place / "my photos").glob("*/*.png"))
    assert load_images(place / "my photos", split="test").paths == test.paths


def test_more_images_leave_most_of_the_split_as_it_is(tmp_path):
    for number in range(50):
        for colour in COLOURS:
            (tmp_path / "all" / colour).mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(tmp_path / "all" / colour / f"{number}.png")
    before = set(load_images(tmp_path / "all", split="test").paths)
    for number in range(50, 55):
        Image.new("L", (2, 2)).save(tmp_path / "all" / "red" / f"{number}.png")

    after = set(load_images(tmp_path / "all", split="test").paths)

    assert len(before) == 30
    assert len(after) == 31
    assert len(before & after) >= 28


def test_the_network_of_a_file_is_found_from_anywhere_and_its_folder_is_not_shipped(run, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(place / "runs" / "mine"), "--out", "again", "-q"]) == 0

    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architecture"] == "net.py:build"
    for file in (tmp_path / "again").glob("*.*"):
        assert str(place).encode() not in file.read_bytes()


@pytest.mark.parametrize("command", ["predict", "validate", "export"])
@pytest.mark.parametrize("given", ["mine", "runs/mine", "runs/mine/bundle-8bit"])
def test_commands_take_a_run_its_name_or_its_bundle(place, monkeypatch, given, command):
    monkeypatch.chdir(place)
    found = run_at(type(place)(given)) if command == "export" else bundle_at(type(place)(given))

    expected = place / "runs" / "mine" / ("" if command == "export" else "bundle-8bit")
    assert found.resolve() == expected.resolve()


@pytest.mark.parametrize("held", ["cat/1.png", "bundle.onnx", "mine/1/SHA256SUMS"])
def test_a_run_may_be_named_like_its_images(place, tmp_path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(place / "runs")
    (tmp_path / "mine" / held).parent.mkdir(parents=True)
    (tmp_path / "mine" / held).touch()

    is_data = held == "cat/1.png"
    assert run_at(type(place)("mine")) == type(place)("runs/mine" if is_data else "mine")
    assert bundle_at(type(place)("mine")) == type(place)("runs/mine/bundle-8bit" if is_data else "mine")


def test_a_run_with_several_bundles_names_them(run, place, tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("recipe.yaml", "bundle-8bit/SHA256SUMS", "bundle-4bit/SHA256SUMS"):
        (tmp_path / "two" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "two" / name).write_text("")

    code, _, err = run("predict", tmp_path / "two", "my photos")

    assert code == 2
    assert "has 2" in err[0]
    assert "bundle-4bit or " in err[1]


def test_a_run_without_a_bundle_says_what_to_type(run, tmp_path):
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "recipe.yaml").write_text("")

    code, _, err = run("serve", tmp_path / "a run")

    assert code == 5
    assert err[1].startswith(f"hint: cpt train --resume '{tmp_path / 'a run'}'")

    (tmp_path / "a run" / "report.json").write_text("")
    code, _, err = run("serve", tmp_path / "a run")

    assert code == 5
    assert err[1] == f"hint: cpt export '{tmp_path / 'a run'}'"


def test_predict_takes_folders_and_patterns(run):
    code, out, _ = run("predict", "mine", "my photos/red", "--json")
    assert code == 0
    assert len(json.loads(out)["results"]) == 10

    code, out, _ = run("predict", "mine", "my photos/*/[12].png", "--json")
    results = json.loads(out)["results"]
    assert [result["image"] for result in results] == [
        f"my photos/{colour}/{number}.png" for colour in COLOURS for number in (1, 2)
    ]

    code, _, err = run("predict", "mine", "my photos/*.gif")
    assert code == 5
    assert "my photos/*.gif" in err[0]


def test_hints_can_be_typed_for_own_data_and_places_with_spaces(run, place):
    code, _, err = run("export", "mine", "--out", "the bundle")
    assert code == 0
    words = hinted(err)
    assert words == ["validate", "the bundle", "--run", "runs/mine"]

    code, out, err = run(*words, "--allow-undecided")
    assert code == 0
    assert "6 images of my photos" in out
    assert hinted(err) == ["serve", "the bundle"]


def test_validate_measures_on_the_data_of_the_run(run):
    code, out, _ = run("validate", "mine", "--limit", "3", "--allow-undecided")
    assert code == 0
    assert "mine on 3 images of my photos (test)" in out


def test_validate_without_the_data_says_so_and_checks_the_rest(run, place, tmp_path, monkeypatch):
    assert main(["export", str(place / "runs/mine"), "--out", str(tmp_path / "moved"), "-q"]) == 0
    monkeypatch.chdir(tmp_path)

    assert main(["validate", "moved"]) == 0


def test_only_the_golden_sample_is_checked_on_request(run):
    code, out, err = run("validate", "mine", "--no-data")
    assert code == 0
    assert "golden sample are reproduced" in out
    assert hinted(err) == ["validate", "runs/mine/bundle-8bit"]
    assert run("validate", "mine", "--no-data", "--data", "digits")[0] == 2


def test_the_best_state_is_exported_on_request(run, place):
    import torch
    from safetensors.torch import load_file

    code, _, err = run("export", "mine", "--checkpoint", "best")

    assert code == 0
    assert hinted(err) == ["validate", "runs/mine/best/bundle-8bit"]
    best = load_file(place / "runs/mine/checkpoints/best.safetensors")
    taken = load_file(place / "runs/mine/best/model.safetensors")
    weights = [name for name in taken if name.endswith("weight")]
    assert weights
    assert all(torch.equal(taken[name], best[f"model.{name}"]) for name in weights)
    assert run("validate", "runs/mine/best", "--allow-undecided")[0] == 0


def test_without_checkpoints_the_best_state_is_no_more(run, place):
    copy = shutil.copytree(
        place / "runs/mine", place / "runs/bare", ignore=shutil.ignore_patterns("best", "checkpoints")
    )
    code, _, err = run("export", "bare", "--checkpoint", "best")
    assert code == 5
    assert "Expected the checkpoint" in err[0]
    assert not (copy / "best").exists()


def test_the_best_state_of_a_run_on_a_gpu_is_found_on_any_machine(run, place):
    copy = shutil.copytree(place / "runs/mine", place / "runs/gpu", ignore=shutil.ignore_patterns("best"))
    recipe = copy / "recipe.yaml"
    changed = re.sub(r"( +)device: \w+\n", r"\1device: cuda\n\1cuda_graph: true\n", recipe.read_text())
    recipe.write_text(re.sub(r" +cuda_graph: false\n", "", changed))
    assert load_recipe(recipe).train.device == "cuda"
    assert run("export", "gpu", "--checkpoint", "best")[0] == 0


def test_more_epochs_of_a_finished_run_are_begun_as_the_hint_says(run, place):
    code, _, err = run("train", "--resume", "mine", "train.epochs=5")
    assert code == 2
    words = shlex.split(err[1].partition(": cpt ")[2])

    assert run(*words, "--dry-run")[0] == 0
    assert words == ["train", "runs/mine/recipe.yaml", "train.epochs=5", "model.weights=runs/mine"]


def test_automatic_resume_begins_and_then_goes_on(run, place):
    words = ["train", "digits-quickstart", "--smoke", "--automatic-resume"]
    assert run(*words)[0] == 0
    code, _, err = run(*words)
    assert code == 0
    assert "the run in runs/digits-quickstart-smoke was finished already" in err
    assert not (place / "runs" / "digits-quickstart-smoke-2").exists()
    (place / "runs" / "digits-quickstart-smoke" / "report.json").unlink()
    assert run(*words)[0] == 0
    assert run("train", "digits-quickstart", "--smoke", "--automatic-resume", "seed=1")[0] == 2
    assert run(*words, "--resume", "mine")[0] == 2


DOUBTS = {
    "cycles": (["precision.cycles=10"], "fewer than 3: train longer, or precision.cycles=1"),
    "low cycles": (["precision.cycles=4"], "precision.cycles=4 over 12 steps reaches 7 bits, not 8"),
    "batch": (["train.batch_size=17", "precision.cycles=1"], "leaves out 29 % of the training set"),
    "large batch": (["train.batch_size=25", "precision.cycles=1"], "more than the 24 training samples"),
    "one cycle": (
        ["precision.cycles=1", "train.steps=2"],
        "1 cycle in 2 steps leave 2 to a cycle, fewer than 3: train longer",
    ),
    "delayed": (["precision.cycles=2", "precision.delay=0.6"], "2 cycles in 5 quantized steps leave 2.5 to a cycle"),
    "average": (
        ["precision.cycles=1", "precision.delay=0.5", "train.swa.enabled=true", "train.swa.start=0.25"],
        "before quantization does: train.swa.start=0.5",
    ),
    "plateau": (["precision.cycles=1", "lr.name=plateau", "train.eval_every=null"], "train.eval_every='1 epoch'"),
    "warm-up": (["lr.warmup_steps=12", "precision.cycles=1"], "warm-up of 12 steps is as long as the run"),
    "few bits": (
        ["precision.cycles=1", "precision.min_bits=3"],
        "are few for the schedule cosine from 3 bits",
    ),
    "all fixed": (["precision.cycles=1", "precision.include=['0.0.0', '3']"], "no layer has scheduled precision"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_plans_that_cannot_teach_are_said_before_training(run, name):
    words, part = DOUBTS[name]
    usual = ["runs/mine/recipe.yaml", "train.steps=12", "--dry-run", "--json"]

    code, out, err = run("train", *usual, *words)

    assert code == 0
    (doubt,) = json.loads(out)["doubts"]
    assert part in doubt
    assert err[0] == f"warning: {doubt}"


def test_a_sound_plan_has_no_doubts(run):
    _, out, _ = run("train", "runs/mine/recipe.yaml", "precision.cycles=2", "train.steps=12", "--dry-run", "--json")
    assert json.loads(out)["doubts"] == []


def test_one_class_is_doubtful(run, tmp_path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "pets" / "cat" / f"{number}.png")

    short = ["precision.cycles=1", "train.batch_size=3", "--dry-run"]
    code, out, err = run("train", f"data.name={tmp_path / 'pets'}", *short)

    assert code == 0
    assert any(line.startswith("warning: all training images are of one class") for line in err)
    assert ", 1 class;" in out


def test_models_of_timm_say_what_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    code, _, err = run("models", "timm/*")
    assert code == 3
    assert err[0] == "error: Expected timm, which has timm/*, but it is not installed"
    assert err[1] == "hint: pip install '.[timm]' in the clone of cpt-deploy"


SMOKE = {
    "resnet38-cifar100-cpt3-8": ["model.name=tiny", "model.args.width=4"],
    "lstm-ptb-cpt5-8": ["model.args={embedding: 8, hidden: 8, layers: 1}", "data.text.sequence=5"],
}


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_runs_need_no_data(run, monkeypatch, tmp_path, name):
    monkeypatch.setenv("CPT_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))

    code, out, err = run("train", name, *SMOKE[name], "--smoke", "--out", tmp_path / "run", "--json")

    assert code == 0
    assert any(line.startswith("warning: this smoke run takes made-up samples") for line in err)
    report = json.loads(out)["report"]
    assert report["steps"] == 2
    assert report["data"]["name"].startswith("made-up-")
    if "cifar100" in name:
        assert (len(report["classes"]), report["preprocessing"]["size"]) == (100, [32, 32])
    else:
        assert report["data"]["vocabulary"]["size"] == 10_000
