"""Whole-process times of small commands, in alternation with `python -c "import torch"`.

Beside each stands the work itself: the same command's second time in one process, which has imported what it needs. The
rest is start-up. Run on a machine at rest: `python benchmarks/command_times.py --rounds 7`. A small run is trained
once, in a temporary folder; `serve` counts until it answers /health/ready.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from measuring import machine, machine_line, markdown_table, write_results

BASE = "import torch"
TRAIN = ("train", "digits-quickstart", "train.epochs=1")
# As installed, or from the second start on: modules are not compiled anew in each process.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(words: list[str]) -> float:
    """Return the time of a process, which has to succeed."""
    start = time.perf_counter()
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, *words], check=True, env=ENVIRONMENT, **silent)
    return time.perf_counter() - start


def cpt(*words: str) -> list[str]:
    """Return the words of a command after `python`."""
    return ["-m", "cpt_cli", *words]


def work(words: tuple[str, ...]) -> float:
    """Return the seconds of a command's second time in one process."""
    line = [sys.executable, __file__, "--twice", *words]
    done = subprocess.run(
        line, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True
    )
    return float(done.stdout.splitlines()[-1])


def twice(words: list[str]) -> None:
    """Run a command twice in this process and print the seconds of the second time; the body of a process."""
    from cpt_cli.main import main as command

    for number in range(2):
        start = time.perf_counter()
        if command([word.replace("{number}", str(number)) for word in words]):
            raise SystemExit(f"Expected cpt {' '.join(words)} to succeed")
    print(f"\n{time.perf_counter() - start}")


def seconds_until_ready(bundle: Path) -> float:
    """Return the time until a server answers that it is ready; it is stopped afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    words = [sys.executable, *cpt("serve", str(bundle), "--port", str(port), "--quiet")]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as server:
        try:
            while server.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                        return time.perf_counter() - start
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.01)
        finally:
            server.terminate()
    raise RuntimeError(f"Expected a server that gets ready, but it ended with {server.returncode}")


def measured(folder: Path) -> tuple[dict[str, Callable[[], float]], dict[str, Callable[[], float]]]:
    """Return the processes to time and the works, by command, after making the run and the bundle that they read."""
    run, image = folder / "quickstart" / "run", folder / "quickstart" / "digit.png"
    bundle = run / "bundle-8bit"
    seconds(cpt("quickstart", "--out", str(folder / "quickstart")))
    commands = {
        "cpt --help": ("--help",),
        "cpt schedules": ("schedules",),
        "cpt info": ("info",),
        "cpt models": ("models",),
        "cpt predict": ("predict", str(bundle), str(image)),
        "cpt validate": ("validate", str(bundle), "--max-drop", "2"),  # 355 digits cannot decide on 0.5 points
        "cpt export": ("export", str(run), "--out", str(folder / "exported")),
    }
    timed: dict[str, Callable[[], float]] = {BASE: partial(seconds, ["-c", BASE])}
    timed |= {name: partial(seconds, cpt(*words)) for name, words in commands.items()}
    timed["cpt serve, until ready"] = partial(seconds_until_ready, bundle)

    def trained() -> float:
        with tempfile.TemporaryDirectory() as empty:
            return seconds(cpt(*TRAIN, "--out", f"{empty}/run"))

    def trained_twice() -> float:
        with tempfile.TemporaryDirectory() as empty:
            return work((*TRAIN, "--out", f"{empty}/run{{number}}"))

    training = "cpt train, one epoch of digits"
    timed[training] = trained
    return timed, {name: partial(work, words) for name, words in commands.items()} | {training: trained_twice}


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per command."""
    medians, inside = ({n: statistics.median(v) for n, v in content[key].items()} for key in ("seconds", "work"))
    rows = [
        [name, f"{median:.2f} s", f"{median / medians[BASE]:.2f}"]
        + ([f"{inside[name]:.2f} s", f"{(median - inside[name]) / medians[BASE]:.2f}"] if name in inside else ["", ""])
        for name, median in medians.items()
    ]
    header = ["command", "time", "times `import torch`", "the work itself", "start-up, times `import torch`"]
    return (
        f"Whole processes, medians of {len(content['seconds'][BASE])} rounds in alternation; the work itself is the "
        "second time of the command in one process.\n\n"
        f"{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Time all commands in alternation and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        timed, works = measured(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in timed}
        worked: dict[str, list[float]] = {name: [] for name in works}
        for number in range(arguments.rounds):
            for kind, runs, found in (("process", timed, times), ("work", works, worked)):
                for name, run in runs.items():
                    found[name].append(run())
                    print(f"round {number + 1}: {name}, {kind} {found[name][-1]:.2f} s", file=sys.stderr)
    content = {"machine": machine(), "seconds": times, "work": worked}
    write_results("command_times", content, table(content))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--twice"]:
        twice(sys.argv[2:])
    else:
        main()
