import os
import signal
import subprocess
import sys

import pytest

from cpt_deploy.errors import RunInterruptedError, UsageError
from cpt_deploy.training import train
from cpt_deploy.training.run_directory import run_lock as run_lock_module
from cpt_deploy.training.run_directory.run_lock import run_lock

# Processes without our code (and without torch, which takes long to load): the system's own locks.
HOLDER = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(descriptor, fcntl.LOCK_EX)
os.write(descriptor, f"process {os.getpid()} on here".encode())
print("locked", flush=True)
time.sleep(600)
"""
TAKER = """
import fcntl, os, sys
try:
    fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(9)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of a directory."""
    started = []

    def fixed(directory=tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(directory / "run.lock")], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield fixed
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_another_process_is_named(tmp_path, holder):
    process = holder()
    message = f"no other process to train in .*, but process {process.pid} on "
    with pytest.raises(UsageError, match=message), run_lock(tmp_path / "run.lock"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder):
    process = holder()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run.lock").exists()
    with run_lock(tmp_path / "run.lock"):
        assert (tmp_path / "run.lock").read_text().startswith(f"process {os.getpid()} ")
    assert not (tmp_path / "run.lock").exists()


def test_a_stale_file_with_the_id_of_a_living_process_is_no_lock(tmp_path):
    (tmp_path / "run.lock").write_text("process 1 on elsewhere\n")
    with run_lock(tmp_path / "run.lock"):
        pass


def test_the_lock_is_seen_by_other_processes_and_ends_with_the_context(tmp_path):
    lock = tmp_path / "run.lock"
    with run_lock(lock):
        assert subprocess.run([sys.executable, "-c", TAKER, str(lock)], check=False).returncode == 9
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not lock.exists()
    lock.touch()
    assert subprocess.run([sys.executable, "-c", TAKER, str(lock)], check=False).returncode == 0


FORKED = """
import importlib.util, os, sys, time
from pathlib import Path
sys.modules["cpt_deploy.training"] = type(sys)("cpt_deploy.training")  # whose __init__ loads torch
sys.modules["cpt_deploy.training"].__path__ = [str(Path(sys.argv[2]).parents[1])]
from cpt_deploy.training.run_directory.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(600)
    print(child, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_forked_processes_do_not_keep_the_lock(tmp_path):
    """As loading processes are: the lock ends with the process that took it, however it ends."""
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "run.lock"), run_lock_module.__file__],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    child = int(ended.stdout)
    try:
        with run_lock(tmp_path / "run.lock"):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_run_that_trains_cannot_be_resumed_beside(recipe, tmp_path, train_until, interrupt, holder):
    with pytest.raises(RunInterruptedError):
        train_until(tmp_path / "run", 5, interrupt())
    assert not (tmp_path / "run" / "run.lock").exists()
    process = holder(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(UsageError, match=f"process {process.pid} on"):
        train(recipe(), tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    process.kill()
    process.wait()
    train(recipe(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_two_runs_do_not_begin_in_one_directory(recipe, tmp_path, holder):
    (tmp_path / "run").mkdir()
    process = holder(tmp_path / "run")
    with pytest.raises(UsageError, match=f"process {process.pid} on"):
        train(recipe(), tmp_path / "run")
