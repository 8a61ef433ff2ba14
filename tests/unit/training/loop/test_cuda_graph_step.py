"""Recorded steps: what replays them, when, and that a run with them ends as one without.

A stand-in of the recorder computes the recorded function at each replay, as a CUDA graph does on a device: it sees the
same tensors, and what Python decided at the recording stays decided.
"""

import pytest
import torch
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.training import train
from cpt_deploy.training.loop import loop
from cpt_deploy.training.loop.cuda_graph_step import WARMUP_STEPS, CudaGraphStep, gradients_of
from cpt_deploy.training.task import StepOutcome

CPU = torch.device("cpu")


class StandIn:
    """Records by keeping the function; gradients that it made at the first replay are written in place from then on."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.recordings = self.replays = 0

    def __call__(self, step):
        self.recordings += 1
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        kept = [parameter.grad for parameter in self.parameters]

        def replay():
            self.replays += 1
            before = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None
            outcome = step()
            for parameter, place, others in zip(self.parameters, kept, before, strict=True):
                place.copy_(parameter.grad)
                parameter.grad = others  # a replay does not know what the parameters have
            return outcome

        return replay


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.fixture
def recorded(linear):
    def step(batch):
        loss = nn.functional.mse_loss(linear(batch[0]), batch[1])
        loss.backward()
        return StepOutcome(loss, torch.tensor(0), len(batch[0]), len(batch[0]))

    return CudaGraphStep(step, list(linear.parameters()), CPU, StandIn(list(linear.parameters())))


def batch_of(rows: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)


def expected(linear, batch):
    loss = nn.functional.mse_loss(linear(batch[0]), batch[1])
    return loss, torch.autograd.grad(loss, list(linear.parameters()))


def test_the_first_steps_are_computed_as_ever_and_the_next_ones_replayed(recorded, linear):
    for seed in range(WARMUP_STEPS):
        assert recorded(batch_of(4, seed), ()) is None
    for seed in range(5):
        batch = batch_of(4, 10 + seed)
        outcome = recorded(batch, ())
        loss, gradients = expected(linear, batch)
        assert outcome is not None
        assert torch.equal(outcome.loss, loss)
        for parameter, gradient in zip(linear.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
    assert (recorded.record.recordings, recorded.record.replays) == (1, 5)


def test_another_shape_is_computed_as_ever_and_harms_nothing(recorded, linear):
    for seed in range(WARMUP_STEPS):
        recorded(batch_of(4, seed), (True,))
    assert recorded(batch_of(4), (True,)) is not None
    assert recorded(batch_of(3), (True,)) is None
    for parameter in linear.parameters():  # as the step of the loop does
        parameter.grad = torch.full_like(parameter, 7.0)
    batch = batch_of(4, 3)
    assert recorded(batch, (True,)) is not None
    for parameter, gradient in zip(linear.parameters(), expected(linear, batch)[1], strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("before", [1, WARMUP_STEPS, 10])
def test_other_branches_are_recorded_anew(recorded, linear, before):
    for seed in range(before):
        recorded(batch_of(4, seed), (False,))
    for seed in range(WARMUP_STEPS):
        assert recorded(batch_of(4, seed), (True,)) is None
    batch = batch_of(4, 20)
    assert recorded(batch, (True,)) is not None
    for parameter, gradient in zip(linear.parameters(), expected(linear, batch)[1], strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_it_waits_for_the_shape_of_the_last_step_before_it_records(recorded):
    for rows in (4,) * (WARMUP_STEPS - 1) + (2,):
        recorded(batch_of(rows), ())
    assert recorded(batch_of(4), ()) is None
    assert recorded(batch_of(2), ()) is not None


@pytest.mark.by_default("0.0")
@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_run_with_recorded_steps_ends_as_one_without(recipe, tmp_path, outcome, monkeypatch, delay):
    made = []

    def on_cpu(run, *, autocast):
        parameters = list(run.objects.model.parameters())
        made.append(CudaGraphStep(gradients_of(run, autocast=autocast), parameters, CPU, StandIn(parameters)))
        return made[-1]

    settings = [
        f"precision.delay={delay}",
        "train.batch_size=96",
        "train.epochs=3",
        "train.device=cpu",
    ]  # the last batch of an epoch is smaller
    train(recipe(*settings), tmp_path / "plain")
    monkeypatch.setattr(loop, "cuda_graph_step", on_cpu)
    train(recipe(*settings), tmp_path / "recorded")

    (recorded,) = made
    assert recorded.record.recordings == (2 if delay else 1)
    assert recorded.record.replays > 20
    plain, replayed = (outcome(tmp_path / name) for name in ("plain", "recorded"))
    assert replayed["rows"] == plain["rows"]
    assert replayed["weights"] == plain["weights"]


def test_without_a_gpu_it_is_refused(recipe, tmp_path):
    with pytest.raises(UsageError, match="cuda_graph for batches of tensors on cuda"):
        train(recipe("train.cuda_graph=true", "train.device=cpu"), tmp_path / "run")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_run_on_a_gpu_learns_as_one_without(recipe, tmp_path):
    settings = ["train.device=cuda", "train.epochs=10"]
    plain = train(recipe(*settings), tmp_path / "plain")
    recorded = train(recipe(*settings, "train.cuda_graph=true"), tmp_path / "recorded")
    assert recorded.test.accuracy > plain.test.accuracy - 0.02
