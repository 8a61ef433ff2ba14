"""One small run, trained, exported and served once, for all tests that follow the path of a user."""

import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.data import load_images

CPT = Path(sys.executable).with_name("cpt")
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("CPT_") and name != "COLUMNS"
} | {
    "OMP_NUM_THREADS": "1",  # the network is small; more threads would wait for each other
    "CPT_SERVE_DRAIN_S": "0",
}

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which all commands are typed."""
    return tmp_path_factory.mktemp("workspace")


def run_process(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Type a command line, as a user would, and return what came of it."""
    line = [str(CPT), *(str(word) for word in words)]
    done = subprocess.run(line, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240)
    return ended_with(0, done)


def ended_with(code: int, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The result of a command, whose exit code was expected."""
    assert done.returncode == code, f"{done.args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def cpt(workspace: Path) -> Run:
    """Types a command line in this process, which saves a start of several seconds, and returns what came of it."""

    def run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        line = [str(word) for word in words]
        stdout, stderr = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.chdir(workspace)
            patch.syspath_prepend(workspace)
            for name in os.environ.keys() - ENVIRONMENT.keys():
                patch.delenv(name)
            ended = main(line)
        return ended_with(code, subprocess.CompletedProcess(line, ended, stdout.getvalue(), stderr.getvalue()))

    return run


@pytest.fixture(scope="session")
def start(workspace: Path) -> Start:
    """Types a command line and returns the running process, its stdout and stderr as pipes."""

    def popen(*words: object) -> subprocess.Popen[str]:
        line = [str(CPT), *(str(word) for word in words)]
        return subprocess.Popen(
            line, cwd=workspace, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return popen


@pytest.fixture(scope="session")
def trained(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The JSON result of a short training; the run is in `runs/digits-quickstart`, with its bundle.

    The first worker that needs it makes it, and each copies it into its workspace.
    """
    here = tmp_path_factory.getbasetemp()
    shared = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "trained"
    result = shared / "result.json"
    with FileLock(f"{shared}.lock"):
        if not result.exists():
            shared.mkdir(exist_ok=True)
            settings = ("precision.min_bits=3", "precision.cycles=2", "train.eval_every=1 epoch")
            done = run_process("train", "digits-quickstart", *settings, "--epochs", 4, "--json", cwd=shared)
            assert "epoch 4/4" in done.stderr
            run = json.loads(done.stdout)["run"]
            assert run_process("export", run, "--bits", 8, "--quiet", cwd=shared).stdout.strip() == f"{run}/bundle-8bit"
            result.write_text(done.stdout)
    document: dict[str, object] = json.loads(result.read_text())
    shutil.copytree(shared / str(document["run"]), workspace / str(document["run"]))
    return document


@pytest.fixture(scope="session")
def run_dir(trained: dict[str, object], workspace: Path) -> Path:
    """The directory of the run, to be left as it is."""
    return workspace / str(trained["run"])


@pytest.fixture(scope="session")
def bundle(run_dir: Path) -> Path:
    """Its 8-bit bundle, to be left as it is but for validation.json."""
    return run_dir / "bundle-8bit"


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def digits(workspace: Path) -> list[Path]:
    """Twelve real digits as PNG files, named by their class."""
    images = load_images("digits", split="test")
    paths = []
    for index in range(0, len(images), len(images) // 12)[:12]:
        path = workspace / f"digit-{index}-{images.classes[images.labels[index]]}.png"
        Image.fromarray(np.asarray(images.image(index))).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def server(bundle: Path, workspace: Path) -> Iterator[str]:
    """The address of a server that serves the bundle; it is stopped in order and must end with 0."""
    line = [str(CPT), "serve", str(bundle), "--port", "0", "--json"]
    with (workspace / "server.log").open("w") as log:
        process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()
            rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ""


@pytest.fixture(scope="session")
def ready() -> Callable[[str, subprocess.Popen[str]], None]:
    """Waits until a server at an address is ready."""
    return wait_until_ready


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Ask until the server is ready, at most for half a minute."""
    for _ in range(300):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"{url} did not become ready")
