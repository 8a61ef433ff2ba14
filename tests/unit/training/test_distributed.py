import copy
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from cpt_deploy.data import eval_loader, load_images
from cpt_deploy.errors import UsageError
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare, synchronize_norms
from cpt_deploy.quantization.numerics.stochastic_rounding import index_noise
from cpt_deploy.quantization.training_step.products import has_bf16_units
from cpt_deploy.training import load_run, train
from cpt_deploy.training.distributed.process_group import ProcessGroup, choose_device, joined, launched
from cpt_deploy.training.evaluation import evaluate
from cpt_deploy.training.reports import SilentReporter
from cpt_deploy.training.run_directory.metrics_log import read_metrics

EVERY_STEP = ("train.log_every=1",)
FLOAT = ("precision={min_bits: 32, max_bits: 32, schedule: static, grad_min_bits: 32, grad_max_bits: 32}",)


def _train(rank, recipe, directory, resume=False, action=None):
    train(recipe, directory, resume=resume, reporter=_At(rank, action) if action else None)


class _At(SilentReporter):
    """Does something after a step; only the first process has one that is told."""

    def __init__(self, rank, action):
        self.rank, (self.step_number, self.signal_number) = rank, action

    def step(self, progress):
        if progress.step == self.step_number:
            os.kill(os.getpid(), self.signal_number)


def losses(directory):
    return np.array([float(row["loss"]) for row in read_metrics(directory / "metrics.csv") if row["loss"]])


def test_in_float_two_processes_are_one(in_processes, recipe, tmp_path):
    mine = recipe(*EVERY_STEP, *FLOAT, "train.batch_size=129")  # parts of 64 and 65

    assert in_processes(2, _train, mine, tmp_path / "two") == [0, 0]
    train(mine, tmp_path / "one")

    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).max() < 1e-4
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-3, atol=1e-4), name


def _train_thrice(rank, recipe, directory):
    for number in range(3):
        train(recipe, directory / str(number))


def test_processes_train_one_run_after_another(in_processes, recipe, tmp_path):
    assert in_processes(2, _train_thrice, recipe("train.steps=2"), tmp_path) == [0, 0]
    weights = [(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(3)]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.slow
def test_quantized_loss_curve_is_that_of_one_process_within_the_bound(in_processes, recipe, tmp_path):
    mine = recipe(*EVERY_STEP)

    assert in_processes(2, _train, mine, tmp_path / "two") == [0, 0]
    train(mine, tmp_path / "one")

    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).mean() < 0.01
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row["gbitops"] for row in two] == [row["gbitops"] for row in one]
    assert len([path for path in (tmp_path / "two").rglob("*") if path.name.startswith("events")]) == 1
    run = load_run(tmp_path / "two")
    batches = eval_loader(load_images("digits", split="test"), run.processor.preprocessing, 100)
    alone = evaluate(run.model, batches, classes=10, device=torch.device("cpu"), step=0)
    assert (alone.metrics, alone.samples) == (run.report.test.metrics, run.report.test.samples)
    assert alone.loss == pytest.approx(run.report.test.loss, rel=1e-5)


def _train_and_tell(rank, recipe, directory):
    with (directory.parent / f"bits-{rank}.txt").open("w") as file:
        set_bits = QuantizedModel.set_bits

        def told(model, forward, backward, groups=None):
            file.write(f"{forward} {backward}\n")
            set_bits(model, forward, backward, groups)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(QuantizedModel, "set_bits", told)
            train(recipe, directory)


@pytest.mark.slow
def test_processes_agree_on_bits_that_follow_the_loss(in_processes, recipe, tmp_path):
    progressive = recipe(
        "train.epochs=1",
        "precision.schedule=progressive",
        "precision.progressive.stages=[3, 4, 8]",
        "precision.progressive.threshold=2",
        "precision.progressive.decay=1",
        "precision.progressive.window=2",
        "precision.progressive.every=2 steps",
    )
    assert in_processes(2, _train_and_tell, progressive, tmp_path / "run") == [0, 0]
    first, second = ((tmp_path / f"bits-{rank}.txt").read_text().split("\n") for rank in (0, 1))
    assert first == second == [*["3 8"] * 4, *["4 8"] * 4, *["8 8"] * 4, ""]  # the last is that of the files


@pytest.mark.by_default("2-1")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_run_goes_on_with_another_number_of_processes(in_processes, recipe, tmp_path, before, after):
    mine = recipe(*EVERY_STEP, *FLOAT)
    train(mine, tmp_path / "whole")

    codes = in_processes(before, _train, mine, tmp_path / "parts", False, (13, signal.SIGTERM))
    assert codes == [143] * before
    assert losses(tmp_path / "parts").shape == ((13,) if before == 1 else (14,))  # the others agree a step later
    assert in_processes(after, _train, mine, tmp_path / "parts", True) == [0] * after

    assert np.abs(losses(tmp_path / "parts") - losses(tmp_path / "whole")).max() < 1e-4


def test_divergence_ends_all_processes(in_processes, recipe, tmp_path):
    mine = recipe("optimizer.lr=1e30", "lr.name=constant", "lr.warmup_steps=0")

    assert in_processes(2, _train, mine, tmp_path / "run") == [1, 1]
    assert (tmp_path / "run" / "curves.png").is_file()


def test_mistakes_of_one_process_end_all(in_processes, recipe, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()

    assert in_processes(2, _train, recipe(), tmp_path / "used") == [2, 1]
    assert in_processes(2, _train, recipe("train.batch_size=1"), tmp_path / "small") == [2, 2]
    assert not (tmp_path / "small").exists()


def _compare_norms(rank, folder):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 4, 5, generator=generator, requires_grad=True)
    weights = torch.randn(x.shape, generator=generator)
    plain, part = nn.Sequential(nn.BatchNorm2d(3)), slice(0, 3) if rank == 0 else slice(3, 7)
    with torch.no_grad():
        plain[0].weight.uniform_(generator=generator)
    expected = plain(x)
    (expected * weights).sum().backward()

    ours = nn.Sequential(nn.BatchNorm2d(3))
    ours.load_state_dict(
        {**plain.state_dict(), **nn.Sequential(nn.BatchNorm2d(3)).state_dict(), "0.weight": plain[0].weight}
    )
    with joined("cpu"):
        synchronize_norms(ours)
        mine = x.detach()[part].clone().requires_grad_()
        output = ours(mine)
        (output * weights[part]).sum().backward()
        gradient = ours[0].weight.grad.clone()
        dist.all_reduce(gradient)
    assert torch.allclose(output, expected[part], atol=1e-5)
    assert torch.allclose(mine.grad, x.grad[part], atol=1e-5)
    assert torch.allclose(gradient, plain[0].weight.grad, atol=1e-4)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].float(), tensor.float(), atol=1e-5), name
    Path(folder, f"passed-{rank}").touch()


def test_norm_over_processes_is_the_norm_of_the_whole_batch(in_processes, tmp_path):
    in_processes(2, _compare_norms, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"passed-0", "passed-1"}


def _step(model, inputs, labels, first_sample=0):
    """One step's logits, and gradients as the whole batch gives them."""
    model.set_step(3, first_sample)
    logits = model(inputs)
    (functional.cross_entropy(logits, labels, reduction="sum") / 14).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def _compare_paths(rank, folder, compute):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    alone = prepare(layers.append(nn.Flatten()), torch.zeros(2, 3, 9, 9), QuantizationConfig()).train()
    alone.compute = "modules"
    fused, modules = copy.deepcopy(alone), copy.deepcopy(alone)
    fused.compute = compute
    x, labels = torch.randn(14, 3, 9, 9), torch.arange(14) % 6
    part, place = (slice(0, 6), 0) if rank == 0 else (slice(6, 14), 6)
    whole, expected = _step(alone, x, labels)
    with joined("cpu"):
        results = []
        for model in (fused, modules):
            synchronize_norms(model.network)
            logits, gradients = _step(model, x[part], labels[part], place)
            for gradient in gradients.values():
                dist.all_reduce(gradient)
            results.append((logits, gradients))
    assert fused._fused is not None
    assert modules._fused is None
    step = float(whole.max() - whole.min()) / 255
    assert torch.allclose(results[0][0], results[1][0], atol=1.01 * step)
    assert torch.allclose(results[0][0], whole[part], atol=3 * step)
    for name, gradient in expected.items():
        of_fused, of_modules = results[0][1][name], results[1][1][name]
        assert (of_fused - of_modules).norm() < 0.02 * of_modules.norm(), name
        assert (of_fused - gradient).norm() < 0.2 * gradient.norm(), name  # its ranges are its own, so is its rounding
    for name in ("running_mean", "running_var"):
        found, wanted = (model.get_submodule("network.1").get_buffer(name) for model in (fused, alone))
        assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-3), name
    Path(folder, f"passed-{rank}").touch()


@pytest.mark.by_default("float32")
@pytest.mark.parametrize("compute", ["float32", "bf16"])
def test_on_codes_a_step_of_two_processes_is_that_of_their_modules_and_that_of_one(in_processes, tmp_path, compute):
    if compute == "bf16" and not has_bf16_units():
        pytest.skip("this processor has no bfloat16 units")

    in_processes(2, _compare_paths, tmp_path, compute)

    assert {path.name for path in tmp_path.iterdir()} == {"passed-0", "passed-1"}


def test_parts_of_a_gradient_have_the_noise_of_the_whole():
    model = prepare(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(2, 3, 2, 5), QuantizationConfig())
    whole, layer, cpu = torch.zeros(7, 4, 2, 5), model.get_submodule("network.0"), torch.device("cpu")
    noise = index_noise(whole.numel(), layer.gradient_seed(whole), cpu)

    model.set_step(0, first_sample=3)
    assert torch.equal(index_noise(160, layer.gradient_seed(whole[3:]), cpu), noise[120:])


def test_devices_of_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert choose_device("auto", ProcessGroup(rank=5, count=6, local=1)) == torch.device("cuda:1")
    assert choose_device("cuda:1", ProcessGroup()) == torch.device("cuda:1")
    with pytest.raises(UsageError, match="several processes"):
        choose_device("cuda:1", ProcessGroup(count=2))
    with pytest.raises(UsageError, match="cuda:2"):
        choose_device("cuda", ProcessGroup(rank=2, count=3, local=2))


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == ProcessGroup()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == ProcessGroup()
