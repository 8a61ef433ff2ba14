"""The networks of the paper: published sizes, closed-form counts, and what distinguishes them from other versions."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from cpt_deploy.models import build_model, describe_model
from cpt_deploy.models.cifar_resnet import cifar_resnet

PAPER_SAMPLES = 64_000 * 128
BITOPS_PER_MAC_AT_8_BITS = 8 * 8 + 2 * 8 * 8


@pytest.mark.parametrize(
    ("depth", "gbitops"), [(38, 1.31e8), (74, 2.65e8), (110, 3.98e8), (152, 5.54e8), (164, 5.99e8)]
)
def test_macs_give_the_gbitops_of_the_papers_static_runs(depth, gbitops):
    macs = describe_model(f"resnet{depth}", num_classes=100, in_channels=3, input_size=(32, 32)).macs
    assert macs * BITOPS_PER_MAC_AT_8_BITS * PAPER_SAMPLES / 1e9 == pytest.approx(gbitops, rel=0.005)


@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (110, "1.73")])
def test_parameters_of_resnets_are_those_of_he_et_al(depth, millions):
    parameters = describe_model(f"resnet{depth}", num_classes=10, in_channels=3, input_size=(32, 32)).parameters
    assert f"{parameters / 1e6:.2f}" == millions


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (38, 6), (74, 12), (110, 18), (152, 25), (164, 27)])
def test_counts_of_resnets_follow_the_closed_form(depth, blocks):
    summary = describe_model(f"resnet{depth}", num_classes=10, in_channels=3, input_size=(32, 32))
    # Convolutions: (inputs, outputs, kernel, output height); each has a batch normalization of two values a channel.
    convs = [(3, 16, 3, 32)]
    for group, width in enumerate([16, 32, 64]):
        entry, height = (16, 32) if group == 0 else (width // 2, 32 // 2**group)
        convs += [(entry, width, 3, height)] + [(width, width, 3, height)] * (2 * blocks - 1)
        convs += [(entry, width, 1, height)] if group else []
    assert len([conv for conv in convs if conv[2] == 3]) + 1 == depth
    assert summary.parameters == sum(i * o * k * k + 2 * o for i, o, k, _ in convs) + 64 * 10 + 10
    assert summary.macs == sum(i * o * k * k * h * h for i, o, k, h in convs) + 64 * 10


def test_mobilenet_has_the_published_size_of_its_cifar_version():
    summary = describe_model("mobilenetv2", num_classes=10, in_channels=3, input_size=(32, 32))
    assert summary.parameters == 2_296_922


def test_mobilenet_is_torchvisions_with_shortcuts_where_a_group_widens_at_stride_1():
    own = build_model("mobilenetv2", num_classes=10, in_channels=3, input_size=(32, 32))
    other = build_model("torchvision/mobilenet_v2", num_classes=10, in_channels=3, input_size=(32, 32))
    widened = [(32, 16), (16, 24), (64, 96), (160, 320)]
    extra = sum(i * o + 2 * o for i, o in widened)
    # torchvision leaves out the 1x1 expansion of the first block, whose factor is 1.
    extra += 32 * 32 + 2 * 32
    size_of = {name: sum(p.numel() for p in model.parameters()) for name, model in [("own", own), ("other", other)]}
    assert size_of["own"] == size_of["other"] + extra


@pytest.mark.parametrize("name", ["tiny", "resnet20", "mobilenetv2"])
def test_activations_are_plain_modules_used_once_and_not_in_place(name):
    model = build_model(name, num_classes=10, in_channels=3, input_size=(32, 32))
    calls: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda called, *_: calls.update({called: calls.get(called, 0) + 1}))
    model(torch.zeros(2, 3, 32, 32))
    assert calls
    assert set(calls.values()) == {1}


def test_a_depth_that_no_such_network_has_is_refused():
    with pytest.raises(ValueError, match=r"6n\+2.*18"):
        cifar_resnet(18, num_classes=10)


def test_tiny_learns_digits():
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images / 8 - 1, dtype=torch.float32).unsqueeze(1)[order]
    y = torch.tensor(digits.target)[order]
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12 * 21)
    for _ in range(12):
        for batch in torch.randperm(1400)[: 21 * 64].split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            scheduler.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    assert accuracy > 0.97
