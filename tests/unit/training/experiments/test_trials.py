"""The queue of a grid's trials: every point once, whoever takes it, and again what was interrupted."""

import subprocess
import sys
import threading
import time

import pytest

from cpt_deploy.errors import UsageError
from cpt_deploy.metric import ACCURACY
from cpt_deploy.training import TrialOutcome, TrialQueue
from cpt_deploy.training.experiments.trials import JOURNAL

optuna = pytest.importorskip("optuna")

NAMES = ["a", "b", "c", "d"]


def points(names):
    return dict.fromkeys(names, "settings")


def finished(name):
    return TrialOutcome("finished", NAMES.index(name) / 10, metric=ACCURACY)


def states(queue):
    return {name: outcome.state for name, outcome in queue.outcomes().items()}


def test_every_point_is_carried_out_once(tmp_path):
    queue, done = TrialQueue(tmp_path, points(NAMES)), []
    assert set(states(queue).values()) == {"waiting"}

    queue.work(lambda name: done.append(name) or finished(name), jobs=2)
    assert sorted(done) == NAMES
    outcomes = queue.outcomes().values()
    assert [(o.state, o.figure) for o in outcomes] == [("finished", pytest.approx(i / 10)) for i in range(4)]

    again = TrialQueue(tmp_path, points(NAMES), retry=True)
    again.work(lambda name: pytest.fail(f"{name} was finished"))


def test_at_most_so_many_at_once_and_all_are_told(tmp_path):
    lock, now, most, told = threading.Lock(), [], [0], []
    together = threading.Barrier(2, timeout=20)

    def execute(name):
        with lock:
            now.append(name)
            most[0] = max(most[0], len(now))
        together.wait()
        with lock:
            now.remove(name)
        return finished(name)

    TrialQueue(tmp_path, points(NAMES)).work(
        execute, jobs=2, on_change=lambda name, outcome: told.append((name, outcome))
    )
    assert most == [2]
    for name in NAMES:
        assert [outcome for told_name, outcome in told if told_name == name] == [None, finished(name)]


def test_one_that_fails_does_not_end_the_others_and_is_retried_when_asked(tmp_path):
    def fails_at_b(name):
        return TrialOutcome("failed", message="no reason") if name == "b" else finished(name)

    queue = TrialQueue(tmp_path, points(NAMES))
    queue.work(fails_at_b)
    assert states(queue) == {"a": "finished", "b": "failed", "c": "finished", "d": "finished"}
    assert queue.outcomes()["b"].message == "no reason"

    done = []
    TrialQueue(tmp_path, points(NAMES)).work(lambda name: done.append(name) or finished(name))
    assert done == []
    TrialQueue(tmp_path, points(NAMES), retry=True).work(lambda name: done.append(name) or finished(name))
    assert done == ["b"]


def test_a_request_to_stop_leaves_the_rest_waiting_and_interrupted_ones_go_on(tmp_path):
    done, stop = [], []

    def execute(name):
        done.append(name)
        stop.append(True)
        return TrialOutcome("interrupted", message="stopped")

    queue = TrialQueue(tmp_path, points(NAMES))
    queue.work(execute, stopping=lambda: bool(stop))
    assert states(queue) == {"a": "interrupted", "b": "waiting", "c": "waiting", "d": "waiting"}

    again = TrialQueue(tmp_path, points(NAMES))
    again.work(lambda name: done.append(name) or finished(name))
    assert sorted(done) == ["a", *NAMES]
    assert set(states(again).values()) == {"finished"}


def test_whether_to_stop_is_asked_while_all_jobs_are_busy(tmp_path):
    asked = threading.Event()

    def execute(name):
        assert asked.wait(20)
        return TrialOutcome("interrupted")

    def stopping():
        if busy:
            asked.set()
        return bool(busy)

    busy = []
    queue = TrialQueue(tmp_path, points(NAMES))
    queue.work(execute, stopping=stopping, on_change=lambda name, outcome: busy.append(name))
    assert states(queue) == {"a": "interrupted", "b": "waiting", "c": "waiting", "d": "waiting"}


def test_a_grid_that_grew_adds_its_points_and_one_that_shrank_leaves_them_out(tmp_path):
    done = []
    TrialQueue(tmp_path, points(NAMES[:2])).work(finished, stopping=lambda: False)
    TrialQueue(tmp_path, points(NAMES))
    shrunk = TrialQueue(tmp_path, points(NAMES[:3]))
    shrunk.work(lambda name: done.append(name) or finished(name))
    assert done == ["c"]
    assert list(states(shrunk)) == NAMES[:3]


def test_what_a_killed_process_was_at_is_taken_up_again(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    monkeypatch.setattr("os.getpid", lambda: dead.pid)
    queue = TrialQueue(tmp_path, points(["a", "b"]))
    with pytest.raises(SystemExit):
        queue.work(lambda name: sys.exit(9))
    monkeypatch.undo()

    done = []
    TrialQueue(tmp_path, points(["a", "b"])).work(lambda name: done.append(name) or finished(name))
    assert sorted(done) == ["a", "b"]


HOLDS = """
import sys
from pathlib import Path
from cpt_deploy.training.run_directory.run_lock import run_lock

with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_goes_on_without_its_grid_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 2**22 + 1)  # no such process
    with pytest.raises(SystemExit):
        TrialQueue(tmp_path, points(["a"])).work(lambda name: sys.exit(9))
    monkeypatch.undo()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    lock = str(tmp_path / "runs" / "a" / "run.lock")
    with subprocess.Popen([sys.executable, "-c", HOLDS, lock], stdin=-1, stdout=-1, text=True) as run:
        assert run.stdout.readline() == "held\n"
        for retry in (False, True):
            queue = TrialQueue(tmp_path, points(["a"]), retry=retry)
            queue.work(lambda name: pytest.fail("it still runs"))
            assert [trial.state for trial in queue.outcomes().values()] == ["running"]
        run.stdin.close()
    done = []
    TrialQueue(tmp_path, points(["a"])).work(lambda name: done.append(name) or finished(name))
    assert done == ["a"]


def test_what_runs_on_another_machine_is_left_alone_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with pytest.raises(SystemExit):
        TrialQueue(tmp_path, points(["a"])).work(lambda name: sys.exit(1))
    monkeypatch.undo()

    queue = TrialQueue(tmp_path, points(["a"]))
    assert [(s.state, s.message) for s in queue.outcomes().values()] == [("running", "on elsewhere")]
    queue.work(lambda name: pytest.fail("it runs elsewhere"))
    done = []
    TrialQueue(tmp_path, points(["a"]), retry=True).work(lambda name: done.append(name) or finished(name))
    assert done == ["a"]


SHARES = """
import sys, time
from pathlib import Path
from cpt_deploy.errors import UsageError
from cpt_deploy.metric import ACCURACY
from cpt_deploy.training import TrialOutcome, TrialQueue

def execute(name):
    time.sleep(0.1)
    print(name, flush=True)
    return TrialOutcome("finished", 0.5, metric=ACCURACY)

queue = TrialQueue(Path(sys.argv[1]), dict.fromkeys(sys.argv[2:], "settings"))
print("ready", flush=True)
queue.work(execute)
"""


def test_two_processes_share_a_grid(tmp_path):
    names = [f"point{number}" for number in range(10)]
    with subprocess.Popen(
        [sys.executable, "-c", SHARES, str(tmp_path), *names], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "ready\n"
        own = []
        queue = TrialQueue(tmp_path, points(names))
        queue.work(lambda name: time.sleep(0.1) or own.append(name) or TrialOutcome("finished", 0.5, metric=ACCURACY))
        theirs = other.stdout.read().split()
    assert other.returncode == 0
    assert sorted(own + theirs) == sorted(names)


def test_the_queue_is_a_study_that_optuna_reads(tmp_path):
    TrialQueue(tmp_path, points(NAMES)).work(finished)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    study = optuna.load_study(study_name="grid", storage=optuna.storages.JournalStorage(backend))
    assert study.best_trial.user_attrs["point"] == "d"
    assert study.best_value == pytest.approx(0.3)


def test_points_with_other_settings_are_refused_unless_they_failed(tmp_path):
    TrialQueue(tmp_path, points("ab")).work(
        lambda name: finished("a") if name == "a" else TrialOutcome("failed", message="diverged")
    )
    for changed in ({"a": "others"}, {"b": "others"}):
        with pytest.raises(UsageError, match=f"Expected {next(iter(changed))} with the settings"):
            TrialQueue(tmp_path, points("ab") | changed)
    with pytest.raises(UsageError, match="Expected a with the settings"):
        TrialQueue(tmp_path, points("ab") | {"a": "others"}, retry=True)
    done = []
    TrialQueue(tmp_path, points("ab") | {"b": "others"}, retry=True).work(
        lambda name: done.append(name) or finished(name)
    )
    assert done == ["b"]
    assert states(TrialQueue(tmp_path, points("ab") | {"b": "others"})) == {"a": "finished", "b": "finished"}
