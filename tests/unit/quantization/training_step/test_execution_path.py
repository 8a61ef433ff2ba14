"""Which way training steps run is on the model, with the reason, and it is the way that they do run."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn

from cpt_deploy.errors import CptWarning
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization import model as model_module
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.kernels.selection import Selection, load_native
from cpt_deploy.quantization.training_step.fused_step import FusedStep


def network(**bounds: int) -> QuantizedModel:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    return prepare(nn.Sequential(*layers), torch.zeros(2, 3, 6, 6), QuantizationConfig(**bounds)).train()


@pytest.fixture
def fused_steps(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types of gradients of the fused steps that ran."""
    ran: list[torch.dtype] = []
    call = FusedStep.__call__

    def listening(self, x, engine):
        ran.append(engine.gradient_dtype)
        return call(self, x, engine)

    monkeypatch.setattr(FusedStep, "__call__", listening)
    return ran


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Selection(TorchKernels(), native=False, reason="they were not compiled")
    monkeypatch.setattr(model_module, "active", lambda *_: chosen)


def test_with_kernels_steps_are_fused_and_the_reason_names_the_setting(fused_steps) -> None:
    model = network()
    model.compute = "float32"
    path = model.execution_path()
    assert path.fused
    assert "'float32'" in path.reason
    assert str(path).startswith("the fused training step on integers, backward in float32: ")
    model(torch.randn(4, 3, 6, 6))
    assert fused_steps == [torch.float32]


def test_auto_says_the_type_that_it_takes(fused_steps) -> None:
    if isinstance(load_native(), str):
        pytest.skip("no compiled kernels")
    model = network()
    path = model.execution_path()
    model(torch.randn(4, 3, 6, 6))
    assert fused_steps == [{"float32": torch.float32, "bf16": torch.bfloat16}[path.compute]]


def set_to_modules(model: QuantizedModel) -> AbstractContextManager[None]:
    model.compute = "modules"
    return nullcontext()


def evaluated(model: QuantizedModel) -> AbstractContextManager[None]:
    model.eval()
    return nullcontext()


@pytest.mark.parametrize(
    ("around", "reason"),
    [
        (set_to_modules, "compute is 'modules'"),
        (evaluated, "evaluation mode"),
        (lambda model: torch.no_grad(), "gradients are off"),
        (lambda model: torch.autocast("cpu"), "autocast is on"),
    ],
    ids=["set", "evaluation", "no gradients", "autocast"],
)
def test_what_leaves_steps_to_the_modules_is_the_reason(
    around: Callable[[QuantizedModel], AbstractContextManager[None]], reason: str, fused_steps
) -> None:
    model = network()
    model.compute = "float32"
    with around(model), warnings.catch_warnings():
        warnings.simplefilter("error")  # as it was asked for: nothing to warn of
        path = model.execution_path()
        model(torch.randn(4, 3, 6, 6))
    assert path.compute == "modules"
    assert not path.hindered
    assert reason in path.reason
    assert str(path) == f"module by module: {path.reason}"
    assert fused_steps == []


def test_bits_and_types_that_kernels_do_not_take_are_the_reason() -> None:
    assert "9 bits" in network(max_bits=9).execution_path().reason
    model = network()
    model.compute = "float32"
    assert model.execution_path().fused
    assert "float32" in model.execution_path(torch.zeros(2, 3, 6, 6, dtype=torch.float64)).reason
    assert "float32" in model.double().execution_path().reason


@pytest.mark.usefixtures("no_kernels")
def test_without_kernels_the_reason_says_why_there_are_none() -> None:
    model = network()
    assert model.execution_path().reason == "no kernels here: they were not compiled"
    model.compute = "float32"  # asked for, plain torch computes it
    assert model.execution_path().fused


@pytest.mark.parametrize(
    ("hinder", "reason"),
    [
        (lambda model: model.get_submodule("network.0").register_forward_hook(lambda *_: None), "forward hook on '0'"),
        (lambda model: model.get_submodule("network.1").eval(), "'1' is in evaluation mode"),
    ],
    ids=["hook", "frozen statistics"],
)
def test_what_is_in_the_way_of_the_fused_step_is_warned_of_with_the_same_reason(hinder, reason, fused_steps) -> None:
    model = network()
    model.compute = "float32"
    assert model.execution_path().fused
    hinder(model)
    path = model.execution_path()
    assert path.hindered
    assert reason in path.reason
    with pytest.warns(CptWarning, match="module by module") as told:
        model(torch.randn(4, 3, 6, 6))
    assert path.reason in str(told[0].message)
    assert fused_steps == []
