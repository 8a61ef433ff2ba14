"""Published weights with heads that only help training: a network's own are taken, and nothing else is let through."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models import build_model
from cpt_deploy.models.auxiliary_heads import split_auxiliary_heads
from cpt_deploy.models.torchvision_models import published_normalization
from cpt_deploy.models.weights_source import WeightsSource

SHAPE = (3, 80, 80)
HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def as_published(name):
    """torchvision's network as it is built for its weights: with its heads, and with its transformation of inputs."""
    torch.manual_seed(7)
    network = torchvision.models.get_model(
        name, weights=None, num_classes=5, aux_logits=True, transform_input=True, init_weights=False
    )
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = None  # statistics as of training, without which no signal reaches the logits
    with torch.no_grad():
        network(torch.randn(4, *SHAPE))
    return network.eval()


def normalised(pixels, normalization):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
    return (pixels - mean) / std


@pytest.mark.parametrize(("name", "suffix"), [("googlenet", ".pth"), ("inception_v3", ".safetensors")])
def test_logits_are_those_of_torchvision_without_its_transformation_in_the_network(name, suffix, tmp_path):
    theirs = as_published(name)
    path = tmp_path / f"net{suffix}"
    save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(theirs.state_dict(), path)
    source = WeightsSource.read(path, f"torchvision/{name}")
    ours = source.build(SHAPE, 5)
    assert source.auxiliary_heads(ours) == HEADS[name]
    pixels = torch.rand(2, *SHAPE)
    imagenet = published_normalization("resnet18", {})
    with torch.no_grad():
        expected = theirs(normalised(pixels, imagenet))
        logits = ours(normalised(pixels, published_normalization(name, {})))
        otherwise = ours(normalised(pixels, imagenet))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(otherwise, expected, rtol=1e-2)


def test_a_network_that_transforms_its_input_itself_reads_imagenets_normalisation():
    assert published_normalization("googlenet", {"transform_input": True}) == published_normalization("vgg11", {})


class WithPlaces(nn.Module):
    """A network with an empty place for a head, one that is filled, and another place that is empty."""

    def __init__(self):
        super().__init__()
        self.fc, self.aux1, self.aux2, self.downsample = nn.Linear(4, 2), None, nn.Linear(4, 2), None


def test_heads_are_left_out_where_a_network_has_an_empty_place_for_them():
    tensors = {name: torch.zeros(1) for name in ("fc.weight", "aux1.fc.weight", "aux2.weight", "downsample.weight")}
    own, heads = split_auxiliary_heads(WithPlaces(), tensors)
    assert (list(own), heads) == (["fc.weight", "aux2.weight", "downsample.weight"], ("aux1",))
    nested = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    own, heads = split_auxiliary_heads(nn.ModuleDict({"backbone": WithPlaces()}), nested)
    assert (len(own), heads) == (3, ("backbone.aux1",))
    assert split_auxiliary_heads(nn.Linear(4, 2), tensors) == (tensors, ())
    assert split_auxiliary_heads(WithPlaces(), {"fc.weight": torch.zeros(1)})[1] == ()


@pytest.mark.parametrize("unknown", ["aux1.fc1.weight", "AuxLogits.fc.weight", "layer1.0.downsample.0.weight"])
def test_a_network_without_such_heads_takes_none(unknown, tmp_path):
    network = build_model("torchvision/resnet18", num_classes=5, in_channels=3, input_size=SHAPE[1:])
    torch.save({**network.state_dict(), unknown: torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(UsageError, match=r"Unexpected key.*" + unknown.replace(".", r"\.")):
        WeightsSource.read(tmp_path / "net.pth", "torchvision/resnet18").build(SHAPE, 5)


def test_timms_inception_leaves_its_head_out_too(tmp_path):
    timm = pytest.importorskip("timm")
    weights = timm.create_model("inception_v3", num_classes=5, aux_logits=True).state_dict()
    ours = build_model("timm/inception_v3", num_classes=5, in_channels=3, input_size=SHAPE[1:])
    own, heads = split_auxiliary_heads(ours, weights)
    assert heads == ("AuxLogits",)
    assert own.keys() == ours.state_dict().keys()
