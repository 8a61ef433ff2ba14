"""`cpt train-grid` as a user types it: interrupted, gone on with, compared; and how trials end."""

import json
import os
import signal
import threading
import time

import pytest

from cpt_cli.main import main
from cpt_deploy.metric import ACCURACY
from cpt_deploy.training import TrialOutcome, read_finished_run
from cpt_deploy.workflows.experiments.trial_processes import _outcome

GRID = """
recipes: [digits-quickstart]
common:
  model.args.width: 4
  train.epochs: 8
  train.eval_every: null
  train.log_every: 1
  train.calibration_batches: 2
  train.device: cpu
seeds: [3]
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def interrupt_when_there(path):
    def watch():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (path.is_file() and path.read_text().count("\n") > 1):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def test_an_interrupted_grid_goes_on_where_it_was(grid, tmp_path, capsys):
    words = ["train-grid", str(grid), "--out", str(tmp_path / "out"), "--json"]
    run = tmp_path / "out" / "runs" / "seed3"
    interrupt_when_there(run / "metrics.csv")
    assert main(words) == 128 + signal.SIGINT
    captured = capsys.readouterr()
    assert [trial["state"] for trial in json.loads(captured.out)["trials"]] == ["interrupted"]
    assert "resume: cpt train-grid" in captured.err
    assert (run / "checkpoints" / "last.safetensors").is_file()

    assert main(words) == 0
    done = json.loads(capsys.readouterr().out)
    assert [(trial["name"], trial["state"]) for trial in done["trials"]] == [("seed3", "finished")]
    assert done["trials"][0]["figure"] == read_finished_run(run).figure == done["groups"][0]["mean"]
    assert "going on from step" in (tmp_path / "out" / "logs" / "seed3.log").read_text()


def test_a_dry_run_lists_the_runs_and_writes_nothing(grid, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train-grid", str(grid), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "seed3" in shown
    assert "train.epochs=8" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize(
    ("code", "answer", "outcome"),
    [
        (
            0,
            json.dumps({"report": {"metric": ACCURACY.to_dict(), "test": {"metrics": {"accuracy": 0.5}}}}),
            TrialOutcome("finished", 0.5, metric=ACCURACY),
        ),
        (5, '{"error": {"message": "no data\\nhere"}}', TrialOutcome("failed", message="no data")),
        (-9, "", TrialOutcome("failed", message="signal 9 ended it")),
        (1, "not JSON", TrialOutcome("failed", message="it ended with code 1")),
    ],
)
def test_a_trial_ends_as_its_process_says(code, answer, outcome):
    assert _outcome(code, answer) == outcome


@pytest.mark.parametrize("code", [130, 143, -15])
def test_a_trial_that_was_asked_to_stop_is_interrupted(code):
    assert _outcome(code, '{"error": {"message": "stopped"}}').state == "interrupted"
