"""torchrun with the real command: two processes on one machine, one of which is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_deploy.training.run_directory.checkpoints import read_checkpoint

CPT = Path(sys.executable).with_name("cpt")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")
SETTINGS = ("model.args.width=4", "train.epochs=null", "train.steps=150", "train.checkpoint_every=5 steps")

linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the worker in /proc")


def worker(launcher: int) -> int:
    """Return the process of rank 1 that a launcher has started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("no process has rank 1")


@linux
@pytest.mark.slow
def test_a_killed_worker_ends_the_run_which_goes_on_alone(cpt, tmp_path):
    run = tmp_path / "run"
    line = [*TORCHRUN, str(CPT), "train", "digits-quickstart", *SETTINGS, "--device", "cpu", "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints" / "last.safetensors").is_file():
        assert process.poll() is None, process.communicate()
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue

    os.kill(worker(process.pid), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=90)

    assert process.returncode == 1
    assert stdout.count("Training digits-quickstart") == 1
    assert "2 processes, first on cpu" in stdout
    assert "the connection to one was lost after step" in stderr
    checkpoint = read_checkpoint(run / "checkpoints" / "last.safetensors")
    assert 0 < checkpoint.state["progress"]["step"] < 150
    assert not (run / "report.json").exists()
    done = cpt("train", "--resume", run)
    assert f"going on from step {checkpoint.state['progress']['step']}" in done.stderr
    assert (run / "report.json").is_file()
