"""Runs of language models on a small text of a known law, without any corpus."""

import json
import math
import os
import signal

import pytest

from cpt_deploy.bundle import ImageProcessor, TextProcessor
from cpt_deploy.errors import CheckpointError, RunInterruptedError, UsageError
from cpt_deploy.precision import relative_cost
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import load_run, plan_run, range_test, train
from cpt_deploy.training.reports import SilentReporter


class Stopper(SilentReporter):
    """Sends this process a signal after a given step."""

    def __init__(self, step):
        self.at = step

    def step(self, progress):
        if progress.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_learns_and_is_read_back(language, tmp_path, outcome):
    adam = ("optimizer.name=adamw", "optimizer.lr=0.01", "lr.name=constant", "train.steps=200")
    report = train(language(*adam), tmp_path / "run")
    entropy = 10 / 11 * math.log(2)  # the end of a line is certain
    assert report.task == "text-generation"
    assert report.test.metrics["perplexity"] == pytest.approx(math.exp(report.test.loss))
    assert report.test.samples == 30 * 11 - 1
    assert math.exp(entropy) - 0.1 < report.test.metrics["perplexity"] < 4.5  # of 9 different words
    assert report.valid.calibrated
    rows = outcome(tmp_path / "run")["rows"]
    assert float(rows[0]["perplexity"]) == pytest.approx(math.exp(float(rows[0]["loss"])))
    assert {row["calibrated"] for row in rows} == {"", "1"}
    assert float(rows[-1]["test_perplexity"]) == report.valid.metrics["perplexity"]
    trained = load_run(tmp_path / "run")
    assert trained.expect_processor(TextProcessor).size == 10  # with <eos> and <unk>
    assert not trained.model.training
    with pytest.raises(UsageError, match="a run with a ImageProcessor"):
        trained.expect_processor(ImageProcessor)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(language, tmp_path, outcome):
    train(language(), tmp_path / "whole")
    with pytest.raises(RunInterruptedError):
        train(language(), tmp_path / "parts", reporter=Stopper(17))
    train(language(), tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_vocabulary_that_does_not_fit_is_refused(language, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunInterruptedError):
        train(language(), run, reporter=Stopper(3))
    saved = (run / "tokenizer.json").read_text()
    (run / "tokenizer.json").write_text(saved.replace("w3", "v3"))
    with pytest.raises(CheckpointError, match="vocabulary that the run began with"):
        train(language(), run, resume=True)
    (run / "tokenizer.json").write_text(saved)
    train(language(), run, resume=True)
    (run / "tokenizer.json").write_text(saved.replace("w3", "v3"))
    with pytest.raises(CheckpointError, match="vocabulary of 10 tokens"):
        load_run(run)


TRANSFORMER = (
    "model.name=transformer-lm",
    "model.args={features: 16, layers: 1, heads: 2, inner: 16, context: 12}",
    "data.text.level=byte",
)


def test_a_transformer_reads_bytes(language, tmp_path):
    report = train(language(*TRANSFORMER, "optimizer.name=adamw", "optimizer.lr=0.01"), tmp_path / "run")
    assert report.data["vocabulary"]["level"] == "byte"
    assert report.test.metrics["perplexity"] < 30


def test_what_does_not_fit_is_one_line(language, tmp_path):
    with pytest.raises(UsageError, match="at most 12 tokens, the model's context"):
        plan_run(language(*TRANSFORMER, "data.text.context=1"), tmp_path)
    with pytest.raises(UsageError, match="known language model, since the data is text, but got 'tiny'"):
        plan_run(language("model.name=tiny", "model.args={}"), tmp_path)
    with pytest.raises(UsageError, match="label_smoothing"):
        plan_run(language("train.label_smoothing=0.1"), tmp_path)


def test_evaluations_without_progress_lower_the_rate(language, tmp_path, outcome):
    train(language("train.eval_every=4 steps", "train.log_every=4"), tmp_path / "run")
    rate, best, lowered = 20.0, math.inf, 0
    for row in outcome(tmp_path / "run")["rows"][:-1]:
        if row["lr"]:
            assert float(row["lr"]) == pytest.approx(rate)
        elif float(row["test_loss"]) < best:
            best = float(row["test_loss"])
        else:
            rate, lowered = rate / 4, lowered + 1
    assert lowered


def test_the_range_test_reads_text(language):
    result = range_test(language("precision.max_bits=4", "precision.min_bits=3"), steps=8, to_max_bits=True)
    assert [entry.bits for entry in result.progress] == [2, 3, 4]
    assert all(entry.batch_size == 8 * 12 for entry in result.progress[:1])
    assert json.dumps(result.to_dict())


PAPER_SAVINGS = {"ptb-lstm": (0.232, 0.002), "ptb-lstm-static8": (0.0, 1e-9), "wikitext103-transformer": (0.302, 0.002)}


@pytest.mark.parametrize("name", PAPER_SAVINGS)
def test_presets_save_what_the_paper_figures_say(name):
    recipe = load_recipe(name)
    forward, backward = recipe.precision.forward_schedule(), recipe.precision.backward_schedule()
    ratio = relative_cost(forward, backward, 8000, reference_bits=8)
    saving, tolerance = PAPER_SAVINGS[name]
    assert 1 - ratio == pytest.approx(saving, abs=tolerance)
    assert recipe.precision.ends == "scheduled"
