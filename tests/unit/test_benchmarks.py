"""What the README and the pages show is what the benchmarks wrote; those for GPUs run here as small as can be."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cpt_deploy.quantization import QuantizationConfig, prepare

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
TABLES = [
    (page, name)
    for page in PAGES
    for name in re.findall(r"<!-- results/(\w+)\.md -->", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "name"), TABLES, ids=[f"{page.stem}-{name}" for page, name in TABLES])
def test_tables_in_the_pages_are_those_that_the_benchmarks_wrote(page: Path, name: str) -> None:
    text = page.read_text(encoding="utf-8")
    block = re.search(rf"<!-- results/{name}\.md -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert block is not None
    assert block.group(1) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_the_machine_and_the_versions(path: Path) -> None:
    machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
    assert machine["cpu"]
    assert {"torch", "onnxruntime", "cpt-deploy"} <= set(machine["versions"])


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_imports_what_it_needs(benchmark, name: str) -> None:
    benchmark(name)


# The tables of the two studies need more than one file and have tests of their own.
@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json") if "study" not in path.stem))
def test_every_program_shows_its_recorded_results_as_they_are_published(benchmark, name: str) -> None:
    program = benchmark(name if name in PROGRAMS else name.partition("_without_")[0])
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    shown = program.table(content) + benchmark("measuring").origin_line(content)
    assert f"{shown}\n" == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_results_name_the_command_and_the_commit_that_wrote_them(benchmark, capsys, monkeypatch, tmp_path) -> None:
    measuring = benchmark("measuring")
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/speed.py", "--rounds", "3"])
    measuring.write_results("speed", {"figure": 1}, "| table |", tmp_path)
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["figure"] == 1
    assert content["origin"] == measuring.origin()
    assert content["origin"]["command"] == "python benchmarks/speed.py --rounds 3"
    table = (tmp_path / "speed.md").read_text()
    assert table == capsys.readouterr().out
    assert table.startswith("| table |\n\nWritten by `python benchmarks/speed.py --rounds 3`")
    assert {path.name for path in tmp_path.iterdir()} == {"speed.json", "speed.md"}
    monkeypatch.setattr(measuring, "ROOT", tmp_path)  # outside of a checkout
    assert measuring.origin() == {**content["origin"], "commit": None, "changed": None}


def test_a_part_of_the_results_is_printed_alone(benchmark, capsys, tmp_path: Path) -> None:
    measuring = benchmark("measuring")
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=["a", "b"])
    parser.add_argument("--rounds", type=int, default=3)
    for line, whole in (([], True), (["--rounds", "1"], True), (["--networks", "a"], False)):
        assert measuring.measures_all(parser, parser.parse_args(line), "networks") == whole
    measuring.write_results("speed", {}, "| table |", tmp_path, whole=False)
    assert "Nothing was written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_published_runs_of_other_settings_are_refused_and_none_is_dropped(benchmark) -> None:
    learning = benchmark("learning")
    recorded = json.loads((RESULTS / "learning.json").read_text(encoding="utf-8"))
    assert learning.published(learning.SETTINGS) == recorded["runs"]
    changed = {**learning.SETTINGS, "ptb": {**learning.SETTINGS["ptb"], "cpt": ["train.steps=1"]}}
    with pytest.raises(SystemExit, match="those of ptb differ"):
        learning.published(changed)


@pytest.mark.slow
def test_the_benchmark_of_training_on_gpus_runs_at_tiny_shapes(benchmark, capsys, tmp_path: Path) -> None:
    line = ["--device", "cpu", "--smoke", "--no-compile", "--seconds", "300", "--results", str(tmp_path)]
    benchmark("training_gpu").main(line)
    content = json.loads((tmp_path / "training_gpu.json").read_text(encoding="utf-8"))
    assert set(content["networks"]) == {"resnet74", "gpt"}
    for network in content["networks"].values():
        assert network["missing"] == {}
        names = set(network["variants"])
        assert {"float32", "TF32", "bf16 autocast", "torch fake-quantize", "authors' scheme"} < names
        assert "cpt-deploy modules" in names
        assert network["flops"] > 0
        for entry in network["variants"].values():
            assert min(entry["milliseconds"], entry["per_second"], entry["bytes"], entry["launches"]) > 0
    assert content["ceilings"]["copy"] > 0
    assert {"quantize", "statistics", "gradient_codes"} < set(content["kernels"])
    assert set(content["networks"]["gpt"]["profiles"]["bf16 autocast"]) > {"all"}
    assert capsys.readouterr().out.endswith((tmp_path / "training_gpu.md").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_tuning_of_kernels_runs_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    line = [sys.executable, ROOT / "benchmarks/gpu_tuning.py", "--device", "cpu", "--smoke", "--results", tmp_path]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "gpu_tuning.json").read_text(encoding="utf-8"))
    assert all(min(times) > 0 for by in content["kernels"].values() for times in by.values())
    assert {"cuDNN bfloat16", "as set"} < set(content["convolutions"][0]["microseconds"])


def test_the_authors_scheme_of_the_benchmarks_is_that_of_the_library(benchmark) -> None:
    variants = benchmark("training_variants")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))
    x = torch.randn(5, 3, 8, 8)
    model = prepare(network, torch.zeros(2, 3, 8, 8), QuantizationConfig(scheme="sbm")).train()
    for bits in (3, 8):
        model.set_bits(bits, 8)
        assert torch.allclose(model(x), variants.like_the_authors(network, bits)(x), atol=1e-5)


def test_what_fails_or_is_not_reached_is_said(benchmark) -> None:
    training_gpu = benchmark("training_gpu")

    def out_of_memory() -> None:
        raise RuntimeError("out of memory\nand more")

    builds = {training_gpu.BASE: lambda: lambda: None, "large": out_of_memory}
    network = training_gpu.Network("net", ("images", 1), builds)
    device = training_gpu.torch.device("cpu")
    result = training_gpu.measure(network, device, float("inf"), 2)
    assert result["missing"] == {"large": "RuntimeError: out of memory"}
    assert training_gpu.measure(network, device, 0.0, 2)["missing"] == {"large": "no time was left"}
    table = training_gpu.network_table("net", result, {"bfloat16": 1.0})
    assert "not measured: RuntimeError: out of memory" in table


def test_a_step_that_cannot_be_counted_keeps_its_time(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    training_gpu = benchmark("training_gpu")

    def no_profile(*_: object) -> None:
        raise OSError("no profiler")

    monkeypatch.setattr(training_gpu, "kernel_times", no_profile)
    network = training_gpu.Network("net", ("images", 1), {training_gpu.BASE: lambda: lambda: None})
    result = training_gpu.measure(network, training_gpu.torch.device("cpu"), float("inf"), 2)
    assert result["variants"][training_gpu.BASE]["rounds"] == 2
    assert "| - | - |" in training_gpu.network_table("net", result, {"bfloat16": 1.0})


def test_what_the_bars_are_about_is_built_first_and_what_may_fail_last(benchmark) -> None:
    base, others = benchmark("training_gpu").BASE, ["cpt-deploy modules, CUDA graph", "float32"]
    first = [base, "cpt-deploy bf16", f"{base}, CUDA graph", "cpt-deploy bf16, CUDA graph"]
    assert list(benchmark("training_gpu").in_order(dict.fromkeys([*others, *first]))) == [*first, *reversed(others)]


def test_results_of_other_networks_are_kept_on_the_same_kind_of_gpu_alone(benchmark, tmp_path: Path) -> None:
    training_gpu = benchmark("training_gpu")
    earlier = {"cpu": "a", "gpu": {"name": "g"}, "versions": {"torch": "1"}}
    content = {"machine": earlier, "bits": training_gpu.BITS, "networks": {"gpt": 1}}
    (tmp_path / "training_gpu.json").write_text(json.dumps(content))
    other_host = {**earlier, "cpu": "b"}
    assert training_gpu.known_results(tmp_path, other_host) == {**content, "machine": other_host}
    assert training_gpu.known_results(tmp_path, {**earlier, "versions": {"torch": "2"}})["networks"] == {}
    assert training_gpu.known_results(tmp_path / "none", earlier)["networks"] == {}


class Inline:
    """A process that runs in this one as soon as it is started."""

    exitcode, pid = 0, None

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], name: str) -> None:
        self.start, self.name = lambda: target(*args), name

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float) -> None:
        pass


@pytest.mark.slow
def test_the_benchmark_of_learning_goes_on_and_keeps_what_shows_the_result(
    benchmark, capsys, monkeypatch, tmp_path: Path
) -> None:
    learning_gpu = benchmark("learning_gpu")
    monkeypatch.setattr(learning_gpu.multiprocessing, "get_context", lambda method: SimpleNamespace(Process=Inline))
    line = ["--device", "cpu", "--smoke", "--models", "tiny", "--workers", "0", "--folder", str(tmp_path / "runs")]
    line += ["--iterations", "4", "--results", str(tmp_path)]
    learning_gpu.main([*line, "--seconds", "0"])
    assert "tiny" not in capsys.readouterr().out
    learning_gpu.main([*line, "--seconds", "100"])
    content = json.loads((tmp_path / "learning_gpu.json").read_text(encoding="utf-8"))
    assert [(run["kind"], run["steps"]) for run in content["runs"]] == [("static8", 4), ("cpt", 4)]
    for run in content["runs"]:
        assert run["curve"][-1] == [4, run["accuracy"]]
    assert content["runs"][0]["gbitops"] > content["runs"][1]["gbitops"]
    for folder in (tmp_path / "runs").iterdir():
        assert {path.name for path in folder.iterdir()} == {"recipe.yaml", "metrics.csv", "report.json", "curves.png"}
    assert "CPT 3-8 | 1 |" in (tmp_path / "learning_gpu.md").read_text(encoding="utf-8")


def test_runs_that_are_not_finished_are_shown_with_their_last_evaluation(benchmark, tmp_path: Path) -> None:
    learning_gpu = benchmark("learning_gpu")
    planned = learning_gpu.Planned("resnet38", "cpt", 2, 64000)
    assert learning_gpu.found(planned, tmp_path) is None
    (tmp_path / "metrics.csv").write_text("step,test_accuracy\n1950,0.5\n2000,\n")
    run = learning_gpu.found(planned, tmp_path)
    assert (run["steps"], run["curve"]) == (2000, [[1950, 0.5]])
    assert "seed 2: 2,000 of 64,000, 50.00 % at step 1,950" in learning_gpu.table([run])


def test_a_run_that_fails_ends_the_benchmark_of_learning(benchmark) -> None:
    going = benchmark("learning_gpu")._is_going
    assert going(SimpleNamespace(exitcode=None, name="run"))
    assert not going(SimpleNamespace(exitcode=0, name="run"))
    with pytest.raises(RuntimeError, match="run failed"):
        going(SimpleNamespace(exitcode=1, name="run"))
