"""One small run, trained, exported and served once, for all tests that follow the path of a user."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from _pytest.capture import CaptureResult
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
Typed = Callable[..., CaptureResult[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which all commands are typed."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="session")
def cpt(workspace: Path) -> Run:
    """Types a command line, as a user would, and returns what came of it."""

    def run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        line = [str(CPT), *(str(word) for word in words)]
        done = subprocess.run(
            line, cwd=workspace, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == code, f"{line} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def typed(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Does the same in this process, which saves a start of several seconds, and returns what was printed."""
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(workspace)

    def run(*words: object, code: int = 0) -> CaptureResult[str]:
        ended = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert ended == code, f"{words} ended with {ended}\n{printed.out}\n{printed.err}"
        return printed

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
def trained(cpt: Run, workspace: Path) -> dict[str, object]:
    """The JSON result of a short training; the run is in `runs/digits-quickstart`."""
    settings = ("precision.cycles=2", "train.eval_every=1 epoch")
    done = cpt("train", "digits-quickstart", *settings, "--epochs", 4, "--json")
    assert "epoch 4/4" in done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    assert (workspace / str(document["run"])).is_dir()
    return document


@pytest.fixture(scope="session")
def run_dir(trained: dict[str, object], workspace: Path) -> Path:
    """The directory of the run, to be left as it is."""
    return workspace / str(trained["run"])


@pytest.fixture(scope="session")
def bundle(cpt: Run, run_dir: Path) -> Path:
    """Its 8-bit bundle, to be left as it is but for validation.json."""
    done = cpt("export", run_dir, "--bits", 8, "--quiet")
    path = Path(run_dir.parent.parent, done.stdout.strip())
    assert path == run_dir / "bundle-8bit"
    return path


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
