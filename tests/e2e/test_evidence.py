"""The page of a validation and the benchmark of a bundle, as a user asks for them."""

import json
import shutil
import subprocess
import sys

import pytest

from cpt_cli.main import main

FIND_SPEC = "cpt_deploy.workflows.validation.find_spec"


@pytest.fixture
def here(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    return workspace


def test_validation_leaves_its_page_in_the_bundle_and_where_it_is_asked_for(here, run_dir, bundle_copy, tmp_path):
    words = ["--data", "digits", "--limit", "50", "--run", str(run_dir), "--allow-undecided"]
    page = tmp_path / "page.html"
    assert main(["validate", str(bundle_copy), *words, "--html", str(page)]) == 0
    text = page.read_text()
    assert text == (bundle_copy / "validation.html").read_text()
    assert "50 images of digits" in text
    assert text.count("<svg") == 4
    stored = json.loads((bundle_copy / "validation.json").read_text())
    assert sum(cell[2] for cell in stored["confusion"]["cells"]) == 50
    assert len(stored["output_pairs"]["first_values"]) == 500
    assert [tensor["name"] for tensor in stored["unoptimized_tensors"]] == [t["name"] for t in stored["tensors"]]
    assert main(["validate", str(bundle_copy), "--no-data"]) == 0


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(here, capsys, bundle, tmp_path):
    assert main(["validate", str(bundle), "--data", "digits", "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "--html" in capsys.readouterr().err
    assert main(["validate", str(bundle), "--data", "digits", "--html", str(tmp_path)]) == 2


def test_without_matplotlib_only_html_needs_it(here, capsys, monkeypatch, run_dir, bundle_copy, tmp_path):
    monkeypatch.setattr(
        FIND_SPEC,
        lambda name: None if name == "matplotlib" else name,
    )
    words = [
        "validate",
        str(bundle_copy),
        "--data",
        "digits",
        "--limit",
        "20",
        "--run",
        str(run_dir),
        "--allow-undecided",
    ]
    assert main([*words, "--html", str(tmp_path / "page.html")]) == 3
    assert "'.[train]'" in capsys.readouterr().err
    monkeypatch.setattr(FIND_SPEC, lambda name: None)
    assert main(words) == 0
    assert not (bundle_copy / "validation.html").exists()


def test_a_bundle_is_timed_beside_its_float_network(cpt, run_dir, bundle, tmp_path):
    plot = tmp_path / "plot.png"
    done = cpt("benchmark", bundle, "--batch", "1,4", "--seconds", 0.05, "--json", "--plot", plot)
    report = json.loads(done.stdout)
    models = ["bundle", "float32", "onnxruntime static"]
    assert [entry["model"] for entry in report["latencies"]] == models * 2
    sizes = {entry["model"]: entry["file_bytes"] for entry in report["footprints"]}
    assert sizes["bundle"] < sizes["onnxruntime static"] < sizes["float32"]
    assert plot.stat().st_size > 10_000
    assert json.loads(plot.with_suffix(".json").read_text())["latencies"] == report["latencies"]
    assert "Warning" not in done.stderr


def test_a_bundle_far_from_its_run_is_timed_alone(here, capsys, bundle, tmp_path):
    alone = shutil.copytree(bundle, tmp_path / "alone")
    assert main(["benchmark", str(alone), "--batch", "1", "--seconds", "0.02"]) == 0
    printed = capsys.readouterr()
    assert "only the bundle is measured" in printed.err
    assert "float32" not in printed.out.replace("of float32", "")


@pytest.mark.parametrize("words", [["--batch", "0"], ["--threads", "two"], ["--batch", ""], ["--plot", "plot.txt"]])
def test_benchmark_refuses_what_it_cannot_do(here, capsys, bundle, words):
    assert main(["benchmark", str(bundle), *words]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_user_without_a_home_and_without_variables_sees_the_verdict_alone(bundle_copy):
    words = ["validate", str(bundle_copy), "--data", "digits", "--limit", "50", "--allow-undecided", "--quiet"]
    line = [sys.executable, "-m", "cpt_cli", *words]
    done = subprocess.run(line, env={"HOME": "/proc/none"}, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("passed\n", "")
