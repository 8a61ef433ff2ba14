"""Commands on a tiny bundle: results in both forms, suggestions for unknown names, odd arguments."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpt_cli.commands.training.train import _complete
from cpt_cli.main import main
from cpt_cli.recipes import split_words
from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.kernels import active
from cpt_deploy.workflows import quickstart


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """Work in an empty directory, so that no command finds or leaves anything."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    monkeypatch.delenv("CPT_DEBUG", raising=False)


@pytest.fixture
def red(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def run(capsys, *words):
    """Run a command line; return its exit code, what it printed on stdout, and the lines on stderr."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


def test_predict_shows_the_best_classes(capsys, shared_bundle, red):
    code, out, err = run(capsys, "predict", shared_bundle.path, red, "--top-k", 2)
    assert code == 0
    assert out.index("red ") < out.index("green ")
    assert "%" in out
    assert err == []


def test_predict_in_json_is_one_object(capsys, shared_bundle, red):
    code, out, err = run(capsys, "predict", shared_bundle.path, red, red, "-k", 3, "--json")
    assert code == 0
    results = json.loads(out)["results"]
    assert [result["image"] for result in results] == [str(red), str(red)]
    assert results[0]["predictions"][0]["label"] == "red"
    assert sum(entry["probability"] for entry in results[0]["predictions"]) == pytest.approx(1)
    assert err == []


def test_quiet_predictions_can_be_cut_into_columns(capsys, shared_bundle, red):
    _, out, _ = run(capsys, "predict", shared_bundle.path, red, "--quiet")
    path, label, share = out.rstrip("\n").split("\t")
    assert (path, label) == (str(red), "red")
    assert share.endswith("%")


def test_predict_reports_bad_images_and_classifies_the_others(capsys, shared_bundle, red, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    code, out, err = run(capsys, "predict", shared_bundle.path, text, red, tmp_path / "missing.png", "--json")
    assert code == 5
    results = json.loads(out)["results"]
    assert ["error" in result for result in results] == [True, False, True]
    assert err[0].startswith(f"warning: {text}: Expected an image")
    assert err[-1] == "error: Expected 3 images, but 2 of them could not be classified"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\nbroken"], ids=["empty", "text", "broken"])
def test_a_single_bad_image_is_the_error(capsys, shared_bundle, tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    code, out, err = run(capsys, "predict", shared_bundle.path, path)
    assert code == 5
    assert err[0].startswith(f"error: {path}: Expected ")
    assert out == ""


def test_predict_needs_an_image(capsys, shared_bundle):
    assert run(capsys, "predict", shared_bundle.path)[0] == 2


def test_predict_without_a_server_says_where_it_looked(capsys, red):
    code, _, err = run(capsys, "predict", "--url", "http://127.0.0.1:9", red)
    assert code == 5
    assert "http://127.0.0.1:9" in err[0]


@pytest.mark.parametrize("command", ["predict", "validate", "serve"])
def test_a_missing_bundle_is_named(capsys, command, red):
    images = [red] if command == "predict" else []
    code, _, err = run(capsys, command, "nowhere", *images)
    assert code == 5
    assert err[0] == "error: Expected a bundle at nowhere, but there is nothing"


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("benchmark", "cpt export --from net.onnx --data inputs.npz"),
        ("export", "cpt export --from net.onnx --data inputs.npz"),
        ("train", "model.name=onnx:net.onnx"),
    ],
)
def test_who_gives_an_onnx_file_elsewhere_is_told_where_it_goes(capsys, tmp_path, monkeypatch, command, hint):
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"any")
    _, _, err = run(capsys, command, "net.onnx")
    assert "net.onnx" in err[0]
    assert hint in err[1]


@pytest.mark.parametrize("command", ["predict", "validate", "serve"])
def test_an_edited_bundle_is_refused(capsys, command, bundle, red):
    labels = bundle.path / "labels.txt"
    labels.write_text(labels.read_text().replace("red", "RED"))
    images = [red] if command == "predict" else []
    code, _, err = run(capsys, command, bundle.path, *images)
    assert code == 5
    assert "labels.txt" in err[0]
    assert "edited" in err[0]


def test_the_formats_are_listed_without_a_run(capsys):
    code, out, _ = run(capsys, "export", "--list-formats")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:] if line] == ["onnx", "safetensors", "torchscript", "pt2"]
    code, out, _ = run(capsys, "export", "--list-formats", "--json")
    assert code == 0
    assert json.loads(out)["formats"]["pt2"]["file"] == "model.pt2"


def test_validate_without_data_checks_the_golden_sample(capsys, shared_bundle):
    code, out, _ = run(capsys, "validate", shared_bundle.path)
    assert code == 0
    assert out.startswith("passed: 12 of 12 output integers")
    assert "constants are as exported" in out
    code, out, _ = run(capsys, "validate", shared_bundle.path, "--json")
    assert json.loads(out)["golden"]["mismatches"] == 0


@pytest.mark.parametrize(
    "option",
    [("--limit", 3), ("--max-drop", 1), ("--run", "runs/x"), ("--data-dir", "data"), ("--html", "page.html")],
    ids=str,
)
def test_validate_without_data_takes_no_options_about_it(capsys, shared_bundle, option):
    code, _, err = run(capsys, "validate", shared_bundle.path, *option)
    assert code == 2
    assert "--data" in err[0]


def test_serve_refuses_settings_out_of_range(capsys, shared_bundle, monkeypatch):
    monkeypatch.setenv("CPT_SERVE_THREADS", "none")
    code, _, err = run(capsys, "serve", shared_bundle.path)
    assert code == 2
    assert "threads" in err[0]


def test_train_splits_its_words():
    assert split_words([]) == (None, [])
    assert split_words(["seed=1", "digits-quickstart", "a.b=c"]) == ("digits-quickstart", ["seed=1", "a.b=c"])
    with pytest.raises(UsageError, match="one preset"):
        split_words(["one", "two"])


def test_completion_offers_presets_and_recipe_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-mine.yaml").touch()
    assert _complete("digits") == ["digits-quickstart", "digits-mine.yaml"]
    assert _complete("zzz") == []


def test_the_shell_completes_commands_and_presets():
    def complete(line):
        program = Path(sys.executable).with_name("cpt")
        asked = {"_CPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert complete("cpt val") == ["validate"]
    assert complete("cpt train digits-q") == ["digits-quickstart"]
    assert "--require-exact" in complete("cpt validate bundle --req")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["digits-quikstart"], "did you mean digits-quickstart?"),
        (["nowhere.yaml"], "presets are named without .yaml"),
        (["train.epoch=3"], "did you mean train.epochs?"),
        (["precision.min_bits=9"], "min_bits <= max_bits <= 32, but got 9..8"),
        (["precision.min_bits=1"], "precision.min_bits"),
        (["precision.schedule=cosin", "--dry-run"], "did you mean cosine"),
        (["model.name=resnet21", "--dry-run"], "did you mean resnet20"),
        (["data.name=digit", "--dry-run"], "did you mean digits"),
        (["--device", "tpu"], "train.device"),
        (["--resume", "nowhere"], "cpt train writes runs"),
        (["digits-quickstart", "--resume", "runs/x"], "cpt train --resume runs/x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_says_what_is_wrong_and_leaves_nothing(capsys, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", *words)
    assert code == (5 if "nowhere" in words[-1] else 2)
    assert part in "\n".join(err)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_plan_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", "digits-quickstart", "--epochs", 4, "--seed", 7, "--dry-run")
    assert code == 0
    for text in (
        "tiny",
        "scheduled",
        "fixed at 8 bits",
        "▁",
        "cosine 5-8 bits",
        "runs/digits-quickstart",
        "88 (4 epochs",
    ):
        assert text in out
    assert err == ["dry run: nothing was written"]
    code, out, _ = run(capsys, "train", "digits-quickstart", "--epochs", 4, "--seed", 7, "--dry-run", "--json")
    plan = json.loads(out)
    assert plan["recipe"]["seed"] == 7
    assert plan["total_steps"] == 4 * plan["steps_per_epoch"]
    assert list(tmp_path.iterdir()) == []


def test_models_lists_sizes_and_suggests_names(capsys):
    code, out, _ = run(capsys, "models", "resnet20", "--json")
    assert code == 0
    assert json.loads(out)["models"] == [
        {
            "name": "resnet20",
            "task": "image-classification",
            "input": [3, 32, 32],
            "classes": 10,
            "parameters": 272474,
            "macs": 40813184,
        }
    ]
    assert "272.47 K" in run(capsys, "models", "resnet2*")[1]
    assert run(capsys, "models", "torchvision/resnet18", "--quiet")[1] == "torchvision/resnet18\n"
    code, _, err = run(capsys, "models", "resnet21")
    assert code == 2
    assert "resnet20" in err[1]


def test_models_lists_language_models_with_their_sizes(capsys):
    code, out, _ = run(capsys, "models", "*-lm", "--json")
    assert code == 0
    lstm, transformer = json.loads(out)["models"]
    gates = 2 * 4 * 650 * (650 + 650)  # two layers of 650
    assert lstm["macs"] == gates + 650 * 10000
    assert lstm["parameters"] == 10000 * 650 + gates + 2 * 2 * 4 * 650 + 10000 * 650 + 10000
    assert (lstm["task"], lstm["classes"], transformer["name"]) == ("text-generation", 10000, "transformer-lm")
    _, out, _ = run(capsys, "models", "lstm-lm", "--classes", 50)
    assert "50 tokens" in out
    _, out, _ = run(capsys, "models", "--quiet")
    assert {"lstm-lm", "transformer-lm"} < set(out.split())
    assert "lstm-lm" in run(capsys, "models", "lstm-ml")[2][1]


def test_datasets_lists_texts_with_the_words_that_are_published(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CPT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("to be\n")
    found = {entry["name"]: entry for entry in json.loads(run(capsys, "datasets", "--json")[1])["datasets"]}
    assert found["digits"]["task"] == "image-classification"
    ptb = found["ptb"]
    assert (ptb["task"], ptb["words"], ptb["available"]) == ("text-generation", 10000, False)
    assert ptb["tokens"] == {"train": 929589, "valid": 73760, "test": 82430}  # Mikolov et al., 2010
    assert found["tinyshakespeare"]["available"]
    assert found["tinyshakespeare"]["tokens"] == {}
    _, out, err = run(capsys, "datasets", "ptb")
    assert "929,589 words" in out
    assert "ptb.train.txt" in "\n".join(err)
    code, _, err = run(capsys, "datasets", "--fetch", "ptb")
    assert code == 2
    assert "ptb.train.txt" in err[1]


def test_datasets_tells_what_is_here_and_how_to_get_the_rest(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CPT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, _ = run(capsys, "datasets", "--json")
    assert code == 0
    found = {entry["name"]: entry for entry in json.loads(out)["datasets"]}
    assert found["digits"]["available"]
    assert not found["cifar10"]["available"]
    _, out, err = run(capsys, "datasets", "cifar10")
    assert "cifar10" in out
    assert "cpt datasets --fetch cifar10" in "\n".join(err)
    code, _, err = run(capsys, "datasets", "cifar11")
    assert code == 2
    assert "cifar10" in err[1]


def test_export_needs_a_finished_run(capsys, tmp_path):
    assert run(capsys, "export", tmp_path / "nothing")[0] == 5
    assert run(capsys, "export", tmp_path, "--bits", 9)[0] == 2


def test_quickstart_replaces_only_its_own_outputs(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        quickstart.make_room(mine)
    fresh = tmp_path / "fresh"
    quickstart.make_room(fresh)
    (fresh / "run").mkdir()
    (fresh / "run" / "old").touch()
    quickstart.make_room(fresh)
    assert [path.name for path in fresh.iterdir()] == ["quickstart.json"]


def test_info_says_which_kernels_train(capsys, monkeypatch):
    code, out, _ = run(capsys, "info", "--json")
    assert code == 0
    training = json.loads(out)["training"]
    assert training["kernels"]
    assert training["compute"] in {"bf16", "float32", "modules"}
    assert (training["compute"] == "modules") == (training["no_native_kernels"] is not None)
    monkeypatch.setenv("CPT_KERNELS", "turbo")
    active.cache_clear()
    try:
        code, _, err = run(capsys, "info")
    finally:
        active.cache_clear()
    assert code == 2
    assert "auto, native, triton, torch, but got 'turbo'" in err[0]


def test_serve_says_what_it_serves_and_how_to_ask(capsys, shared_bundle, tmp_path, monkeypatch):
    heard = []

    def run_nothing(settings, *, on_listening):
        heard.append(settings)
        on_listening("http://127.0.0.1:1")

    monkeypatch.setattr("cpt_serving.server.run", run_nothing)
    _, out, _ = run(capsys, "serve", shared_bundle.path, "--max-batch", 3)
    assert "curl -F file=@image.png http://127.0.0.1:1/predict" in out
    monkeypatch.setattr("cpt_deploy.bundle.reading.bundle_task", lambda _: "text-generation")
    _, out, _ = run(capsys, "serve", shared_bundle.path)
    assert """curl -d '{"prompt": "The"}' http://127.0.0.1:1/generate""" in " ".join(out.split())
    monkeypatch.undo()
    monkeypatch.setattr("cpt_serving.server.run", run_nothing)
    for name in ("one", "two"):
        shutil.copytree(shared_bundle.path, tmp_path / "models" / name / "1")
    options = ("--watch", 5, "--timeout", 2, "--require-evidence", "--queue-rows", 7)
    _, out, _ = run(capsys, "serve", tmp_path / "models", *options)
    assert "one, two" in out
    assert "http://127.0.0.1:1/models/one/predict" in out
    assert heard[0].max_batch == 3
    settings = heard[2]
    assert (settings.watch_s, settings.timeout_s, settings.queue_rows) == (5, 2, 7)
    assert settings.require_evidence
    file = tmp_path / "serve.yaml"
    file.write_text(f"bundle: {shared_bundle.path}\nmax_rows: 5\n")
    _, out, _ = run(capsys, "serve", "--config", file, "--json")
    assert json.loads(out)["models"] == ["colours"]
    assert heard[3].max_rows == 5
