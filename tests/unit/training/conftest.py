import csv
import json
import multiprocessing
import os
import random
import signal
import socket
import sys

import pytest
import torch

from cpt_deploy.errors import CptError
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import train
from cpt_deploy.training.reports import SilentReporter

SMALL = (
    "name=small",
    "model.args.width=4",
    "train.epochs=2",
    "train.batch_size=128",
    "train.log_every=4",
    "train.eval_every=1 epoch",
    "train.checkpoint_every=1 epoch",
    "train.calibration_batches=3",
    "train.device=cpu",
    "precision.cycles=2",
)
TIMES = ("images_per_s", "data_share", "step_ms", "memory_mb", "seconds")


@pytest.fixture(scope="session")
def recipe():
    """Makes a recipe that trains a very small model on digits for two epochs of 11 steps."""

    def make(*overrides):
        return load_recipe("digits-quickstart", [*SMALL, *overrides])

    return make


class StepHook(SilentReporter):
    """Calls a function after a given step."""

    def __init__(self, step, action):
        self.at, self.action = step, action

    def step(self, progress):
        if progress.step == self.at:
            self.action()


class Recorder(SilentReporter):
    """Keeps all that it is told."""

    def __init__(self):
        self.steps, self.evaluations = [], []

    def start(self, plan):
        self.plan = plan

    def step(self, progress):
        self.steps.append(progress)

    def evaluated(self, evaluation):
        self.evaluations.append(evaluation)

    def finished(self, report):
        self.report = report


def _in_processes(count, function, *arguments):
    """Call a function in processes as torchrun would start them, and return their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Forked from a process that has imported torch and done nothing else: autograd refuses to run in a fork of one that
    # has used it on another device.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cpt_deploy.training"])
    processes = [
        context.Process(target=_as_rank, args=(rank, count, port, function, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)  # each process converts the network and tries to deploy it before it trains
    return [process.exitcode for process in processes]


def _as_rank(rank, count, port, function, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        function(rank, *arguments)
    except CptError as error:
        os._exit(error.exit_code)
    os._exit(0)


@pytest.fixture(scope="session")
def in_processes():
    """Calls a function, with its rank and further arguments, in processes as torchrun would start them."""
    return _in_processes


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def interrupt():
    """Makes a function that sends this process a signal."""

    def make(number=signal.SIGINT):
        return lambda: os.kill(os.getpid(), number)

    return make


@pytest.fixture
def train_until(recipe):
    """Trains and calls a function after a step; returns the report, or raises what the run raised."""

    def run(directory, step, action, *overrides, resume=False):
        return train(recipe(*overrides), directory, resume=resume, reporter=StepHook(step, action))

    return run


@pytest.fixture(scope="session")
def outcome():
    """What a run left behind, without times: weights, rows of the log, report."""

    def read(directory):
        with (directory / "metrics.csv").open(newline="") as file:
            rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
        report = json.loads((directory / "report.json").read_text())
        for key in ("seconds", "images_per_s", "steps_by_bits"):
            report.pop(key)
        for evaluation in (report["test"], report["best"], report["valid"]):
            if evaluation is not None:
                evaluation.pop("seconds")
        return {"weights": (directory / "model.safetensors").read_bytes(), "rows": rows, "report": report}

    return read


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a module of the user's own, importable by its name."""

    written = []

    def write(name, text):
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def finished(recipe, outcome, tmp_path_factory):
    """What an uninterrupted run of a recipe left behind, trained once for all tests that compare with it."""
    known = {}

    def get(*overrides):
        if overrides not in known:
            directory = tmp_path_factory.mktemp("whole") / "run"
            train(recipe(*overrides), directory)
            known[overrides] = outcome(directory)
        return known[overrides]

    return get


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Text in which each word is one of two that may follow the last one, so that its entropy is 1 bit a word."""
    folder = tmp_path_factory.mktemp("corpus")
    source = random.Random(0)
    words = [f"w{number}" for number in range(8)]
    for split, lines in (("train", 400), ("valid", 30), ("test", 30)):
        state, text = 0, []
        for _ in range(lines):
            line = []
            for _ in range(10):
                state = (2 * state + source.randrange(2)) % 8
                line.append(words[state])
            text.append(" ".join(line))
        (folder / f"{split}.txt").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture(scope="session")
def language(corpus):
    """Makes a recipe that trains a very small language model for some steps."""

    def make(*overrides):
        settings = [
            f"data.name={corpus}",
            "model.args={embedding: 16, hidden: 16, layers: 2, dropout: 0.1}",
            "train.steps=40",
            "train.epochs=null",
            "data.text.sequence=12",
            "train.batch_size=8",
            "train.eval_every=20 steps",
            "train.checkpoint_every=10 steps",
            "train.log_every=10",
            "train.calibration_batches=4",
            "train.device=cpu",
            "precision.cycles=2",
            *overrides,
        ]
        return load_recipe("ptb-lstm", settings)

    return make
