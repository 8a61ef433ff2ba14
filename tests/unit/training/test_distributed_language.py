"""Language models on several processes: each has some rows of the text."""

import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cpt_deploy.data import Share
from cpt_deploy.data.text import evaluation_chunks
from cpt_deploy.training import load_run, train
from cpt_deploy.training.reports import SilentReporter
from cpt_deploy.training.run_directory.checkpoints import read_checkpoint
from cpt_deploy.training.run_directory.metrics_log import read_metrics

# Without dropout, whose random numbers are each process's own; in float32, without the noise of rounding.
SHORT = ("train.steps=14", "train.eval_every=14 steps", "train.log_every=1", "optimizer.lr=1.0")
PLAIN = (*SHORT, "model.args.dropout=0.0")
FLOAT = ("precision={min_bits: 32, max_bits: 32, schedule: static, grad_min_bits: 32, grad_max_bits: 32}",)
BANDS = (
    "model.name=transformer-lm",
    "model.args={features: 16, layers: 1, heads: 2, inner: 16, context: 24, dropout: 0.0, cutoffs: [2, 9]}",
    "data.text.context=5",
    *SHORT,
)


class Stopper(SilentReporter):
    """Sends this process a signal after a step; only the first process has a reporter that is told."""

    def step(self, progress):
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


def _train(rank, recipe, directory, resume=False, reporter=None):
    train(recipe, directory, resume=resume, reporter=reporter)


def losses(directory):
    return np.array([float(row["loss"]) for row in read_metrics(directory / "metrics.csv") if row["loss"]])


@pytest.mark.by_default("lstm")
@pytest.mark.parametrize("settings", [PLAIN, BANDS], ids=["lstm", "bands"])
def test_in_float_three_processes_are_one(in_processes, language, tmp_path, settings):
    mine = language(*settings, *FLOAT)  # 8 rows, of which the processes have 2, 3 and 3

    assert in_processes(3, _train, mine, tmp_path / "three") == [0, 0, 0]
    alone = train(mine, tmp_path / "one")

    assert np.abs(losses(tmp_path / "three") - losses(tmp_path / "one")).max() < 1e-4
    one, three = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "three"))
    for name, tensor in one.items():  # weights, and the ranges on which the model calibrated
        assert torch.allclose(three[name], tensor, rtol=1e-3, atol=1e-4), name
    report = load_run(tmp_path / "three").report
    assert report.test.metrics["perplexity"] == pytest.approx(alone.test.metrics["perplexity"], rel=1e-3)
    assert (report.test.samples, report.valid.samples) == (alone.test.samples, alone.valid.samples)


@pytest.mark.slow
def test_quantized_they_are_one_within_rounding(in_processes, language, tmp_path):
    mine = language(*PLAIN)

    assert in_processes(2, _train, mine, tmp_path / "two") == [0, 0]
    train(mine, tmp_path / "one")

    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).mean() < 0.02
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row["gbitops"] for row in two] == [row["gbitops"] for row in one]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(in_processes, language, tmp_path):
    mine = language(*PLAIN, *FLOAT)
    train(mine, tmp_path / "whole")

    assert in_processes(2, _train, mine, tmp_path / "parts", False, Stopper()) == [143, 143]
    carried = read_checkpoint(tmp_path / "parts" / "checkpoints" / "last.safetensors").tensors
    assert {name: tensor.shape for name, tensor in carried.items() if name.startswith("task.")} == {
        "task.0": (8, 2, 16),
        "task.1": (8, 2, 16),
    }
    assert in_processes(3, _train, mine, tmp_path / "parts", True) == [0, 0, 0]

    assert np.abs(losses(tmp_path / "parts") - losses(tmp_path / "whole")).max() < 1e-4


def test_more_processes_than_rows_are_refused(in_processes, language, tmp_path):
    assert in_processes(2, _train, language("train.batch_size=1"), tmp_path / "run") == [2, 2]
    assert not (tmp_path / "run").exists()


def test_each_row_is_evaluated_by_one_process():
    ids = np.arange(50, dtype=np.int32)

    def rows(share):
        """Return the targets of a process's rows, and how many chunks it has."""
        chunks = [chunk.targets for chunk in evaluation_chunks(ids, 3, 7, share=share)]
        return (torch.cat(chunks, dim=1).tolist() if chunks else []), len(chunks)

    parts, numbers = zip(*(rows(Share(index, 4)) for index in range(4)), strict=True)
    assert numbers == (0, 3, 3, 3)  # four processes, three rows
    assert [row for part in parts for row in part] == rows(Share())[0]
