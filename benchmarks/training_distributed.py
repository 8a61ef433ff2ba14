"""Time of a training step in each of two processes, and the difference of their losses from a single process.

python benchmarks/training_distributed.py [--rounds 9]
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from torch import multiprocessing
from torch.nn import functional

from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import train
from cpt_deploy.training.distributed.process_group import ProcessGroup, joined, launched
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.loop import setup
from cpt_deploy.training.run_directory.metrics_log import read_metrics

BATCH, BITS = 128, 6
BASE = "cpt-deploy modules"
SETTINGS = ("train.epochs=null", "train.steps=200", "train.log_every=1", "train.device=cpu")
NOISE = "one process, other seed of the gradients' noise only"


def in_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in several processes, with the environment that torchrun would set."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # finds a free port
    port = store.port
    del store
    multiprocessing.spawn(_as_rank, (count, port, function, arguments), nprocs=count)


def _as_rank(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    os.environ |= {name: str(value) for name, value in zip(names, (rank, rank, count, count, port), strict=True)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    function(*arguments)


def training_step(compute: str, ranks: ProcessGroup) -> Callable[[], None]:
    """Return a training step of ResNet-20 on this process's part of a batch of 32x32 images."""
    torch.manual_seed(0)
    network = build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32))
    model = (
        prepare(network, torch.zeros(2, 3, 32, 32), QuantizationConfig()).train().to(memory_format=torch.channels_last)
    )
    model.compute = compute  # type: ignore[assignment]
    model.set_bits(BITS, 8)
    part = BATCH // ranks.count
    x = torch.randn(part, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (part,))
    synchronization = Synchronization(model, ranks, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    numbers = itertools.count()

    def step() -> None:
        model.set_step(next(numbers))
        loss = functional.cross_entropy(synchronization.replica(x), labels)
        synchronization.exchange(loss.detach(), torch.tensor(0.0), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def time_steps(rounds: int, path: Path) -> None:
    """Time the paths in turn, in processor time of this process; the first process writes the results."""
    ranks = launched()
    with joined("cpu"):
        steps = {f"cpt-deploy {name}": training_step(name, ranks) for name in ("modules", "float32", "bf16")}
        times = interleaved(steps, rounds=rounds, warmup=2, clock=time.process_time)
    if ranks.is_main:
        torch.save(times, path)


def curve(processes: int, folder: Path) -> npt.NDArray[np.float64]:
    """Return the losses of 200 steps on digits, CPT 3-8; the run is kept in a folder."""
    recipe = load_recipe("digits-quickstart", list(SETTINGS))
    if processes == 1:
        train(recipe, folder)
    else:
        in_processes(processes, train, recipe, folder)
    return np.array([float(row["loss"]) for row in read_metrics(folder / "metrics.csv") if row["loss"]])


def curves(folder: Path) -> dict[str, dict[str, float]]:
    """Return the differences between the losses of several processes and of one."""
    found = {"one process": curve(1, folder / "one")}
    original = setup.QuantizationConfig
    setup.QuantizationConfig = lambda **given: original(**{**given, "seed": 1})  # type: ignore[assignment,misc]
    found[NOISE] = curve(1, folder / "noise")
    setup.QuantizationConfig = original  # type: ignore[misc]
    found |= {f"{count} processes": curve(count, folder / str(count)) for count in (2, 4)}
    smooth = {name: losses.reshape(-1, 20).mean(1) for name, losses in found.items()}
    return {
        name: {
            "mean": float(np.abs(losses - found["one process"]).mean()),
            "first_10": float(np.abs(losses - found["one process"])[:10].mean()),
            "of_20": float(np.abs(smooth[name] - smooth["one process"]).max()),
        }
        for name, losses in found.items()
        if name != "one process"
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text: times by number of processes, then differences of losses."""
    times, ratios = content["milliseconds"], content["ratios"]
    rows = [
        [name, *(f"{times[count][name]:.0f} ms, {ratios[count][name]:.2f}" for count in times)] for name in times["1"]
    ]
    header = ["step of ResNet-20, batch 128", "one process", "each of two processes"]
    differences = [
        [name, f"{d['mean']:.3f}", f"{d['first_10']:.4f}", f"{d['of_20']:.3f}"] for name, d in content["curves"].items()
    ]
    measures = ["a step's loss, mean", "first 10 steps, mean", "mean of 20 steps, greatest"]
    return (
        "Processor time of a step of one thread, communication included, and its ratio to the modules "
        "one by one; medians of an interleaved run (`python benchmarks/training_distributed.py`)\n\n"
        f"{markdown_table(header, rows)}\n\n"
        "Differences of the losses of 200 steps of batch 64 on scikit-learn's digits, CPT 3-8, 8 cycles\n\n"
        f"{markdown_table(['compared with one process', *measures], differences)}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure times and curves and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for count in (1, 2):
            in_processes(count, time_steps, rounds, Path(folder, f"times-{count}"))
            found[str(count)] = torch.load(Path(folder, f"times-{count}"))
        distances = curves(Path(folder))
    milliseconds = {
        count: {name: 1e3 * statistics.median(values) for name, values in times.items()}
        for count, times in found.items()
    }
    ratios = {
        c: {name: 1 / median_ratio(times[BASE], values) for name, values in times.items()} for c, times in found.items()
    }
    results = {"milliseconds": milliseconds, "ratios": ratios, "curves": distances}
    content = {"machine": machine(), "bits": BITS, **results}
    write_results("training_distributed", content, table(content))


if __name__ == "__main__":
    main()
