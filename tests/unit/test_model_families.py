"""Some families of networks from float to onnxruntime, as `benchmarks/model_families.py` takes all of them."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("model_families")


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: pip install {package}")


def check(result: dict[str, Any], hidden: int = 0) -> None:
    assert result["converts"], result
    assert result["differing"] == 0
    assert result["hidden"] == hidden
    assert result["integers"] > 1000
    assert result["logits"] < 0.05


def test_a_network_of_convolutions_converts_fully(families):
    result = families.measure(families.image_network("torchvision/mobilenet_v3_small", 32))
    check(result)
    assert result["float_operators"] == {}
    assert result["integer_share_of_macs"] == 1
    assert families.row(result)[1:3] == ["fully", "none"]


@needs("timm")
@pytest.mark.parametrize(("name", "operator"), [("timm/resnet10t", None), ("timm/convnext_atto", "layer_norm")])
def test_networks_of_timm_convert_by_their_names(families, name, operator):
    result = families.measure(families.image_network(name, 32))
    check(result)
    assert operator is None or result["float_operators"][operator] > 0


@needs("transformers")
def test_a_classifier_of_text_keeps_its_attention_in_float(families):
    small = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    result = families.measure(families.text_network("DistilBert", **small))
    check(result, hidden=1)  # between the two layers of its head, which onnxruntime fuses otherwise if it is an output
    assert result["float_operators"]["scaled_dot_product_attention"] == 1
    assert 0.5 < result["integer_share_of_macs"] < 1


def test_what_is_refused_is_said(families):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            pooled: Tensor = self.layer(x.mean((2, 3)))
            return pooled if pooled.sum() > 0 else -pooled

    result = families.measure(families.Network("branches", Branches, (3, 8, 8)))
    assert not result["converts"]
    assert families.row(result)[1] == "no"
    assert "depends on values" in result["reason"]


def test_a_run_measures_what_is_missing(families, monkeypatch, tmp_path):
    measured = []

    def measure(network: Any) -> dict[str, Any]:
        measured.append(network.name)
        return {"network": network.name, "converts": False, "reason": "x"}

    monkeypatch.setattr(families, "measure", measure)
    line = ["--results", str(tmp_path)]
    families.main([*line, "--networks", "mobilenet_v2", "resnet18"])
    families.main([*line, "--networks", "regnet_y", "resnet18"])
    assert measured == ["torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/regnet_y_400mf"]
    table = (tmp_path / "model_families.md").read_text()
    assert table.index("torchvision/resnet18") < table.index("torchvision/mobilenet_v2") < table.index("Not measured")
    assert table.index("Not measured yet: torchvision/mobilenet_v3_small") < table.index("torchvision/vit_b_32")
    families.main([*line, "--networks", "resnet18", "--again"])
    assert measured[3:] == ["torchvision/resnet18"]
    families.main(line)
    assert sorted(measured[4:]) == sorted({network.name for network in families.all_networks()} - set(measured[:3]))
    assert "Not measured" not in (tmp_path / "model_families.md").read_text()
