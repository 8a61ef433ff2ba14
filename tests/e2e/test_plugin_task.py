"""A task from another package, found by its entry point: train, export, validate, serve and predict."""

import json
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import r2_score

from cpt_cli.main import main
from cpt_deploy.workflows import ExportOptions, export_run, running_server, sweep_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "tabular_regression"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example as `pip install -e` leaves it: its folder on the path, and the entry points of its pyproject.toml."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    places = [str(site), str(EXAMPLE)]
    with pytest.MonkeyPatch.context() as patch:
        for place in places:
            patch.syspath_prepend(place)
        patch.setenv("PYTHONPATH", ":".join(places))
        yield


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    path = tmp_path_factory.mktemp("diabetes") / "run"
    assert main(["train", str(EXAMPLE / "recipe.yaml"), "--out", str(path), "--epochs", "15", "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def bundle(run):
    assert main(["export", str(run), "--bits", "8", "--quiet"]) == 0
    return run / "bundle-8bit"


@pytest.fixture(scope="module")
def table(installed):
    from diabetes_task.table import load_table

    return load_table("test")


def served_by_onnxruntime(bundle, table):
    return onnxruntime.InferenceSession(bundle / "model.onnx").run(["progression"], table.inputs)[0]


def test_the_bundle_passes_and_its_metric_is_that_of_scikit_learn(bundle, table, capsys):
    assert main(["validate", str(bundle), "--data", "diabetes", "--max-drop", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["integers"]["mismatching"] == 0 < report["integers"]["compared"]
    found = {entry["name"]: entry["r_squared"] for entry in report["runtimes"]}
    expected = r2_score(table.targets, served_by_onnxruntime(bundle, table))
    assert found["onnxruntime"] == pytest.approx(expected, abs=1e-6)
    assert found["trained"] == pytest.approx(found["onnxruntime"], abs=0.01)
    assert found["onnxruntime"] > 0.2
    page = (bundle / "validation.html").read_text()
    assert "R squared in each runtime" in page
    assert "89 patients of diabetes" in page
    card = (bundle / "README.md").read_text()
    assert "pipeline_tag: tabular-regression" in card
    assert "hundreds" in card


def test_a_bundle_that_lost_too_much_fails(run, bundle, capsys):
    words = ["export", str(run), "--bits", "8", "--act-bits", "2", "--force", "--out", str(run / "worse"), "--quiet"]
    assert main(words) == 0
    assert main(["validate", str(run / "worse"), "--data", "diabetes", "--max-drop", "0.5"]) == 4
    assert "r squared" in capsys.readouterr().err


def test_rows_are_predicted_here_and_by_a_server(bundle, table, tmp_path, capsys):
    expected = served_by_onnxruntime(bundle, table)[:3].ravel()
    rows = tmp_path / "rows.json"
    inputs = {name: values[:3].tolist() for name, values in table.inputs.items()}
    rows.write_text(json.dumps({"inputs": inputs}))
    assert main(["predict", str(bundle), "--inputs", str(rows), "--json"]) == 0
    assert "progression" in capsys.readouterr().out
    with running_server(bundle, tmp_path / "server.log") as url:
        body = json.dumps({"inputs": inputs}).encode()
        request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        assert np.allclose(numbers_of(answer), expected)
        assert main(["predict", "--url", url, "--inputs", str(rows), "--json"]) == 0


def numbers_of(answer):
    """Every number under the name of the output, in order."""
    if isinstance(answer, dict):
        return [
            number
            for name, value in answer.items()
            for number in (np.ravel(value).tolist() if name == "progression" else numbers_of(value))
        ]
    return [number for entry in answer for number in numbers_of(entry)] if isinstance(answer, list) else []


def test_the_request_that_is_shown_is_answered(bundle, tmp_path):
    from cpt_deploy.tasks import task_named

    with running_server(bundle, tmp_path / "server.log") as url:
        words = shlex.split(task_named("tabular-regression").example_request(url))
        body = words[words.index("-d") + 1].encode()
        request = urllib.request.Request(words[-1], body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            assert numbers_of(json.load(response))


@pytest.mark.slow
def test_bits_by_layer_and_a_sweep_work_as_for_any_task(run, tmp_path):
    chosen = export_run(run, ExportOptions(budget=0.8), destination=tmp_path / "bundle")
    assert chosen.facts["mixed_precision"]["size_of_8_bits"] <= 0.8
    swept = sweep_run(run, bits=[8, 4], rounds=2)
    assert [entry["mismatching_integers"] for entry in swept.content["exports"]] == [0, 0]
    assert "r squared" in swept.table.columns


def test_the_task_imports_no_torch_before_it_needs_it(installed):
    code = "import sys; from cpt_deploy.tasks import task_named; task_named('tabular-regression').scoring()\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
