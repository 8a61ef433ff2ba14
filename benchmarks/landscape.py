"""Loss landscape, sharpness and spread of CPT and static runs side by side, on Fashion-MNIST.

Trains the tiny network with CPT 3-8/8 and at static 8 bits from three seeds each (finished runs are kept), measures the
loss on a plane around the minima of the first seed and the sharpness of all minima, and measures whether a batch of
networks under `torch.func.vmap` is faster than one network after another.

    CPT_DATA_DIR=… python benchmarks/landscape.py [--work runs/landscape] [--seeds 0 1 2]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import machine, machine_line, markdown_table, measures_all, write_results
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, prepare

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SETTINGS = {"static8": ["precision.schedule=static"], "cpt3-8": ["precision.min_bits=3"]}
COMMON = ["fashion-mnist-resnet20", "model.name=tiny", "train.epochs=2", "train.device=cpu"]
GRID_IMAGES, SHARPNESS_IMAGES = 500, 200


def command(*arguments: str) -> dict[str, Any]:
    """Run a command of the project with `--json` and return what it prints."""
    print("$ cpt", *arguments, file=sys.stderr, flush=True)
    line = [sys.executable, "-m", "cpt_cli", *arguments, "--json"]
    finished = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def trained(work: Path, setting: str, seed: int) -> Path:
    """Train a run unless it is finished already, and return its directory."""
    name = f"{setting}-seed{seed}"
    run = work / "runs" / name
    if not (run / "report.json").is_file():
        words = [*COMMON, *SETTINGS[setting], f"seed={seed}", f"name={name}"]
        command("train", *(["--resume", str(run)] if run.is_dir() else [*words, "--out", str(run)]))
    return run


def vmap_times(name: str, images: int, size: int, networks: int = 4, rounds: int = 3) -> dict[str, Any]:
    """Measure the processor time of evaluating networks of float layers one by one and under vmap, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(images, 3, size, size).to(memory_format=torch.channels_last)
    bits32 = QuantizationConfig(min_bits=32, max_bits=32)  # the quantizers' own functions cannot run under vmap
    nets: list[nn.Module] = [
        prepare(build_model(name, num_classes=10, in_channels=3, input_size=(size, size)), x[:2], bits32)
        .eval()
        .to(memory_format=torch.channels_last)
        for _ in range(networks)
    ]
    parameters, buffers = stack_module_state(nets)

    def one_by_one() -> Tensor:
        return torch.stack([net(x) for net in nets])

    def batched() -> Tensor:
        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            logits: Tensor = functional_call(nets[0], (parameters, buffers), (x,))
            return logits

        result: Tensor = vmap(call)(parameters, buffers)
        return result

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap warns that some operators fall back
        difference = float((one_by_one() - batched()).abs().max())
        times = {"one_by_one": _least(one_by_one, rounds), "vmap": _least(batched, rounds)}
    return {
        "model": name,
        "images": images,
        "networks": networks,
        "max_difference": difference,
        "ms_per_network": {key: round(1e3 * value / networks, 2) for key, value in times.items()},
        "ratio": round(times["vmap"] / times["one_by_one"], 2),
    }


def _least(function: Callable[[], Tensor], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def _spread(values: list[float], form: str) -> str:
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def rows_of(content: Mapping[str, Any]) -> list[list[str]]:
    """Return a row per setting: mean ± standard deviation over its seeds."""
    rise = {entry["name"]: entry["mean_rise"] for entry in content["plane"]}
    rows = []
    for setting, group in zip(SETTINGS, content["compare"], strict=True):
        entries = [entry for entry in content["sharpness"] if entry["name"].rpartition("-")[0] == setting]
        relative = [entry for entry in entries if entry["coordinates"] == "relative"]
        absolute = [entry for entry in entries if entry["coordinates"] == "absolute"]
        rows.append(
            [
                setting,
                _spread([100 * value for value in group["accuracies"]], ".2f") + " %",
                f"{group['gbitops']:,.0f}",
                _spread([entry["eigenvalues"][0] for entry in absolute], ".0f"),
                _spread([entry["eigenvalues"][0] for entry in relative], ".0f"),
                _spread([entry["trace"]["mean"] for entry in relative], ".0f"),
                _spread([entry["rise"] for entry in relative], ".3f"),
                f"{next(value for name, value in rise.items() if name.startswith(setting)):.2f}",
            ]
        )
    return rows


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text."""
    header = [
        "setting", "test accuracy", "GBitOPs", "largest eigenvalue", "relative to filters", "trace, relative",
        "rise within 0.05, relative", "mean rise on the plane",
    ]  # fmt: skip
    title = (
        f"The tiny ResNet, 2 epochs of Fashion-MNIST, {len(content['seeds'])} seeds, mean ± standard deviation; loss "
        f"of {SHARPNESS_IMAGES} training images, of {GRID_IMAGES} on the plane, where it is the first seed "
        "(`python benchmarks/landscape.py`)"
    )
    vmapped = ", ".join(f"{entry['model']} {entry['ratio']:.1f}x" for entry in content["vmap"])
    return (
        f"{title}\n\n{markdown_table(header, rows_of(content))}\n\n"
        f"Processor time of four networks under `torch.func.vmap` against one after another, one thread: {vmapped}.\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Train, measure, and write numbers and plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/landscape"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    work, seeds = arguments.work, arguments.seeds
    runs = {setting: [str(trained(work, setting, seed)) for seed in seeds] for setting in SETTINGS}
    every = [run for group in runs.values() for run in group]
    whole = measures_all(parser, arguments, "seeds")
    pictures = IMAGES if whole else work
    compared = command(
        "compare", *every, "--plot", str(pictures / "compare.png"), "--curves", str(pictures / "seed-curves.png")
    )
    firsts = [group[0] for group in runs.values()]
    plane = command("landscape", *firsts, "--out", str(work / "plane"), "--images", str(GRID_IMAGES), "--points", "17")
    shutil.copyfile(work / "plane" / "landscape.png", pictures / "landscape.png")
    sharp = command("sharpness", *every, "--images", str(SHARPNESS_IMAGES), "--probes", "10", "--tolerance", "0.02")
    for entry in sharp["runs"]:
        entry["run"] = Path(entry["run"]).name
    times = [vmap_times("tiny", 256, 28), vmap_times("resnet20", 128, 32)]
    groups = [{key: value for key, value in group.items() if key != "runs"} for group in compared["groups"]]
    content = {
        "machine": machine(),
        "seeds": seeds,
        "compare": groups,
        "sharpness": sharp["runs"],
        "plane": plane["runs"],
        "vmap": times,
    }
    write_results("landscape", content, table(content), whole=whole)


if __name__ == "__main__":
    main()
