"""What a run looks like while it goes on, with and without a terminal."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cpt_cli.output import out
from cpt_cli.shown.training_progress import TrainingProgress, show_plan, show_profile
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import Evaluation, ProfileReport, StepProgress, TrainPlan


@pytest.fixture(autouse=True)
def plain_output():
    out.configure()


def plan(*overrides, first_step=0):
    return TrainPlan(
        run_dir=Path("runs/x"),
        recipe=load_recipe("digits-quickstart", ("precision.min_bits=3", *overrides)),
        device="cpu",
        parameters=19_714,
        macs=533_824,
        layers={"scheduled": 5, "fixed": 2},
        train_images=1442,
        test_images=355,
        classes=10,
        steps_per_epoch=2,
        total_steps=64,
        first_step=first_step,
        relative_cost=0.6273,
    )


def step(number):
    return StepProgress(number, 64, 0, bits=5, grad_bits=8, lr=0.1, loss=1.25, accuracy=0.5, images_per_s=1000.4)


def run_four_steps(**settings):
    with TrainingProgress() as progress:
        progress.start(plan(**settings))
        for number in range(1, 5):
            progress.step(step(number))
        progress.evaluated(Evaluation(4, loss=0.1, metrics={"accuracy": 0.9}, samples=355, seconds=0.1, best=True))
        progress.evaluated(
            Evaluation(4, loss=0.1, metrics={"accuracy": 0.91}, samples=355, seconds=0.1, calibrated=True)
        )


def test_without_a_terminal_an_epoch_is_one_line(capsys):
    run_four_steps()
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/32  bits 5  lr 0.1  loss 1.250  train 50.00 %  1000 images/s",
        "epoch 2/32  bits 5  lr 0.1  loss 1.250  train 50.00 %  1000 images/s  test 90.00 %, best",
    ]


def test_quietly_nothing_is_said(capsys):
    out.configure(quiet=True)
    run_four_steps()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_on_a_terminal_there_is_a_bar_and_no_lines(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_four_steps(first_step=1)
    drawn = capsys.readouterr().err
    assert "going on from step 1" in drawn
    assert "training" in drawn
    assert "4/64" in drawn
    assert "epoch 2/32" not in drawn


def test_the_plan_names_what_decides_the_run(capsys):
    show_plan(plan())
    printed = capsys.readouterr().out
    for text in ("tiny", "19.71 K parameters", "533.82 K MACs", "5 scheduled, 2 fixed at 8 bits", "62.73 %", "runs/x"):
        assert text in printed
    assert "… (8 cycles)  cosine 3-8 bits forward, 8 backward" in printed


def test_a_static_schedule_is_a_level_line(capsys):
    show_plan(plan("precision.schedule=static"))
    assert "████████  static 8 bits forward" in capsys.readouterr().out


@pytest.mark.parametrize(("share", "hinted"), [(0.6, True), (0.05, False)])
def test_slow_loading_is_said_once_with_what_helps(capsys, share, hinted):
    with TrainingProgress() as progress:
        progress.start(plan())
        for number in range(1, 9):
            progress.step(replace(step(number), data_share=share + 0.001 * (number // 2)))
    printed = capsys.readouterr().err
    assert printed.count("data.workers=1 or more") == hinted
    assert f"waiting for data {100 * share:.0f} %" in printed


def test_a_profile_is_a_table_of_parts(capsys):
    report = ProfileReport(
        steps=4,
        step_seconds=0.1,
        seconds={"convolution and linear layers": 0.075, "optimizer": 0.025},
        operators={"convolution and linear layers": [("aten::convolution", 0.07)]},
        trace=Path("runs/x/trace.json.gz"),
    )
    show_profile(report)
    printed = capsys.readouterr().out
    assert "100.0 ms" in printed
    assert "75.0 %" in printed
    assert "aten::convolution 70.00" in printed
    assert "runs/x/trace.json.gz" in printed


def test_the_plan_says_how_many_files_are_left_out(capsys):
    show_plan(replace(plan(), left_out={".heic": 1200, "unreadable": 2}))
    assert "files left out    1,200 .heic, 2 unreadable" in capsys.readouterr().out
    show_plan(plan())
    assert "left out" not in capsys.readouterr().out
