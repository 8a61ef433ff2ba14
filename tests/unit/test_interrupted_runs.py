"""A test run that is interrupted or killed leaves nothing behind: no worker, no server, no child of theirs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A server that no polite signal ends, started by a program that a test starts, as `cpt serve` or torchrun would.
RUN = """
import subprocess, sys, time
from pathlib import Path

SERVER = "import signal, time; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN); time.sleep(90)"
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"

def test_that_waits():
    subprocess.Popen([sys.executable, "-c", STARTER, SERVER], env=None, start_new_session=True)
    Path(__file__).with_name("started").touch()
    time.sleep(90)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the watchdog looks in /proc")


def processes(text: str) -> set[int]:
    """The processes that have a text among their variables, as the shell's own tools would find them."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def test_nothing_is_left_of_a_run_that_ends_early(tmp_path):
    runs = {}
    try:
        for ended_by in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            folder = tmp_path / ended_by.name
            folder.mkdir()
            (folder / "test_it.py").write_text(RUN)
            line = [sys.executable, "-m", "pytest", folder, "-p", "tests.conftest", "-p", "xdist", "-n", "1"]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
            process = subprocess.Popen(
                [*line, "--rootdir", folder, "-p", "no:cacheprovider"],
                cwd=ROOT,
                env=environment | {"MARKED": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            runs[ended_by] = process, folder
        for ended_by, (process, folder) in runs.items():
            wait_for((folder / "started").exists)
            wait_for(
                lambda folder=folder: len(processes(f"MARKED={folder}")) >= 4
            )  # pytest, its worker, the program, its server
            if ended_by == signal.SIGINT:
                os.killpg(process.pid, ended_by)  # as a terminal does
            else:
                process.send_signal(ended_by)
        for process, folder in runs.values():
            process.wait(150)  # a busy machine may let a Ctrl-C wait for the end of the test
            wait_for(lambda folder=folder: not processes(f"MARKED={folder}"))
    finally:
        for process, folder in runs.values():
            for left in processes(f"MARKED={folder}"):
                os.kill(left, signal.SIGKILL)
            process.wait()


def wait_for(condition) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("the condition was never met")
