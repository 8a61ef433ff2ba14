"""Counts against the figures that torchvision publishes with its weights."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from cpt_deploy.models import describe_model
from cpt_deploy.models.summary import ModelSummary, summarize

PUBLISHED = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
    "vit_b_32",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_that_torchvision_publishes(name):
    weights = next(iter(torchvision.models.get_model_weights(name)))
    size = weights.transforms.keywords["crop_size"]
    summary = describe_model(f"torchvision/{name}", num_classes=1000, in_channels=3, input_size=(size, size))
    assert summary.parameters == weights.meta["num_params"]
    assert summary.macs / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.005, abs=0.0005)


def test_inception_is_the_published_one_less_its_auxiliary_head():
    summary = describe_model("torchvision/inception_v3", num_classes=1000, in_channels=3, input_size=(299, 299))
    assert summary.parameters == 23_834_568


@pytest.mark.parametrize(("groups", "macs"), [(1, 8 * 12 * 9 * 36), (4, 8 * 3 * 9 * 36)], ids=["dense", "grouped"])
def test_grouped_convolutions_count_their_own_inputs_only(groups, macs):
    model = nn.Conv2d(8, 12, 3, groups=groups, bias=False)
    assert summarize(model, (8, 8, 8)).macs == macs


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert summarize(model, (1, 8, 8)) == ModelSummary(parameters=20 + 4 + 365, macs=2 * 9 * 36 + 360)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_users_model_that_reads_values_while_building_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "summary_user_model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build(num_classes):\n"
        "    width = int(torch.tensor([4.0]).item())\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    summary = describe_model("summary_user_model:build", num_classes=10, in_channels=1, input_size=(8, 8))
    assert summary == ModelSummary(parameters=64 * 4 + 4 + 4 * 10 + 10, macs=64 * 4 + 4 * 10)
