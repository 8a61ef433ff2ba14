"""Weights from files: what is safe is read, what could run code is refused without running it."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models import build_model
from cpt_deploy.models.weights_source import WeightsSource

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8)).eval()


def assert_same(path: Path, network: nn.Module) -> None:
    x = torch.randn(2, *SHAPE)
    assert torch.equal(WeightsSource.read(path, "tiny").build(SHAPE, 10)(x), network(x))


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.safetensors"])
def test_a_state_dict_is_loaded_into_its_model(name: str, network: nn.Module, tmp_path: Path) -> None:
    weights = network.state_dict()
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    assert_same(tmp_path / name, network)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints_of_training_scripts_are_unwrapped(key: str, network: nn.Module, tmp_path: Path) -> None:
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "best": 0.5, key: parallel}, tmp_path / "net.pt")
    assert_same(tmp_path / "net.pt", network)


class _Armed:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"weights": _Armed(tmp_path / "it-ran")}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="Python objects") as raised:
        WeightsSource.read(tmp_path / "net.pt", "tiny")
    assert "state_dict" in str(raised.value.hint)
    assert not (tmp_path / "it-ran").exists()


def test_a_pickled_module_is_refused_with_a_hint_how_to_save_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="Python objects") as raised:
        WeightsSource.read(tmp_path / "net.pt", "tiny")
    assert "torch.save(model.state_dict()" in str(raised.value.hint)


def test_programs_are_refused_with_a_way_to_onnx(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(3, 3), torch.zeros(1, 3)), tmp_path / "net.pt")
        torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.zeros(1, 3),)), tmp_path / "net.pt2")
    for name, kind in (("net.pt", "TorchScript file"), ("net.pt2", r"torch\.export program")):
        with pytest.raises(UsageError, match=kind) as raised:
            WeightsSource.read(tmp_path / name, "tiny")
        assert "torch.onnx.export" in str(raised.value.hint)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {}])
def test_what_holds_no_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="tensors by name"):
        WeightsSource.read(tmp_path / "net.pt", "tiny")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("length", [0, 20, 5000])
def test_damaged_files_are_one_line(name: str, length: int, network: nn.Module, tmp_path: Path) -> None:
    weights: dict[str, Tensor] = network.state_dict()
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])
    with pytest.raises(DataError, match="Expected weights in") as raised:
        WeightsSource.read(tmp_path / name, "tiny")
    assert "\n" not in str(raised.value)


def test_weights_of_another_model_or_of_other_classes_are_one_line(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "net.pt")
    for name, classes in (("resnet20", 10), ("tiny", 7)):
        with pytest.raises(UsageError, match=f"those of {name} with {classes} classes") as raised:
            WeightsSource.read(tmp_path / "net.pt", name).build(SHAPE, classes)
        assert len(str(raised.value)) < 400
    with pytest.raises(UsageError, match="Expected the model that the weights"):
        WeightsSource.read(tmp_path / "net.pt")
