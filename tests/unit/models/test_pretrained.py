"""Weights to begin with, as torchvision and timm save them: every tensor arrives, or one line says why not."""

import subprocess
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cpt_deploy.errors import DataError, MissingExtraError, UsageError
from cpt_deploy.models import build_model
from cpt_deploy.models.pretrained import last_layer, load_pretrained, read_pretrained

SIZE = (64, 64)
RESNET = "torchvision/resnet18"


def network(name, classes=2, channels=3):
    return build_model(name, num_classes=classes, in_channels=channels, input_size=SIZE)


def save(weights, path):
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def load(path, model, name, channels=3):
    return load_pretrained(model, read_pretrained(path, name), last_layer(model, (channels, *SIZE)), name)


@pytest.fixture(scope="module")
def trained():
    """torchvision's own ResNet-18 with statistics as training leaves them, which fresh ones are not."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18(num_classes=1000)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.safetensors"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_all_but_a_head_of_other_classes_is_that_of_torchvision(trained, tmp_path, name, wrapper):
    weights = trained.state_dict()
    if wrapper is not None:
        if name.endswith("safetensors"):
            pytest.skip("safetensors hold nothing but tensors")
        weights = {"epoch": 90, wrapper: {f"module.{key}": value for key, value in weights.items()}}
    path = save(weights, tmp_path / name)
    model = network(RESNET)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load(path, model, RESNET) == ("fc.weight", "fc.bias")
    after = model.state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(after[key], before[key] if key.startswith("fc.") else value), key
    x = torch.randn(2, 3, *SIZE)
    trunk = [nn.Sequential(*list(net.children())[:-1]).eval() for net in (model, trained)]
    with torch.no_grad():
        assert torch.equal(trunk[0](x), trunk[1](x))


def test_a_head_of_as_many_classes_is_loaded_too(trained, tmp_path):
    path = save(trained.state_dict(), tmp_path / "net.pth")
    model = network(RESNET, classes=1000)
    assert load(path, model, RESNET) == ()
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), trained(x))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("file", ["net.pth", "net.safetensors"])
def test_weights_of_timm_are_loaded_into_timm_networks(name, file, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(6)
    sized = {"img_size": SIZE} if name.startswith("vit") else {}
    theirs = timm.create_model(name, num_classes=7, **sized).eval()
    path = save(theirs.state_dict(), tmp_path / file)
    same, other = network(f"timm/{name}", classes=7), network(f"timm/{name}", classes=2)
    assert load(path, same, name) == ()
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(same.eval()(x), theirs(x))
    head = theirs.pretrained_cfg["classifier"]
    assert load(path, other, name) == (f"{head}.weight", f"{head}.bias")
    with torch.no_grad():
        assert torch.equal(other.eval().forward_features(x), theirs.forward_features(x))


def test_a_model_that_timm_does_not_have_is_one_line():
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="a model of timm") as raised:
        network("timm/resnet19")
    assert "resnet18" in raised.value.hint
    with pytest.raises(UsageError, match="arguments that timm's resnet18 takes"):
        build_model("timm/resnet18", num_classes=2, in_channels=3, input_size=SIZE, wdith=3)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError) as raised:
        network("timm/resnet18")
    assert "'.[timm]'" in raised.value.hint
    assert network("tiny") is not None


def test_what_differs_is_listed_with_what_was_expected(trained, tmp_path):
    weights = dict(trained.state_dict())
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 32, 3, 3)
    weights["extra.weight"] = torch.zeros(3)
    for key in [key for key in weights if key.startswith("layer4.1.")]:
        del weights[key]
    path = save(weights, tmp_path / "net.pth")
    model = network(RESNET)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UsageError) as raised:
        load(path, model, RESNET)
    message = str(raised.value)
    assert "weights in net.pth to be those of torchvision/resnet18" in message
    assert "10 are missing: layer4.1.conv1.weight, layer4.1.bn1.weight, layer4.1.bn1.bias, …" in message
    assert "1 are not its own: extra.weight" in message
    assert "layer1.0.conv1.weight is 64 x 32 x 3 x 3 and not 64 x 64 x 3 x 3" in message
    assert "\n" not in message
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_first_layer_of_other_channels_is_refused_with_its_remedy(trained, tmp_path):
    path = save(trained.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UsageError, match=r"conv1\.weight is 64 x 3 x 7 x 7 and not 64 x 1 x 7 x 7") as raised:
        load(path, network(RESNET, channels=1), RESNET, channels=1)
    assert "data.input.channels=3" in raised.value.hint


def test_a_hidden_layer_of_another_width_is_no_head(tmp_path):
    narrow, wide = (build_model("tiny", num_classes=4, in_channels=1, input_size=(8, 8), width=w) for w in (4, 8))
    path = save(narrow.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="have another shape"):
        load_pretrained(wide, read_pretrained(path, "tiny"), last_layer(wide, (1, 8, 8)), "tiny")


def test_counters_that_old_files_lack_are_not_missed(trained, tmp_path):
    weights = {key: value for key, value in trained.state_dict().items() if "num_batches" not in key}
    assert len(weights) == 102  # as torchvision's files of 2017 have
    assert load(save(weights, tmp_path / "net.pth"), network(RESNET), RESNET) == ("fc.weight", "fc.bias")


def test_half_precision_becomes_float32(tmp_path):
    model = build_model("tiny", num_classes=4, in_channels=1, input_size=(8, 8))
    path = save({key: value.half() for key, value in model.state_dict().items()}, tmp_path / "net.safetensors")
    other = build_model("tiny", num_classes=4, in_channels=1, input_size=(8, 8))
    load_pretrained(other, read_pretrained(path, "tiny"), "fc", "tiny")
    assert other.conv1.weight.dtype == torch.float32
    assert torch.equal(other.conv1.weight, model.conv1.weight.half().float())


def test_weights_that_are_not_finite_or_no_file_are_one_line(tmp_path):
    save({"conv1.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"NaN or infinity in conv1\.weight"):
        read_pretrained(tmp_path / "net.pt", "tiny")
    with pytest.raises(DataError, match="there is nothing"):
        read_pretrained(tmp_path / "none.pt", "tiny")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"Expected weights as .*, but got net\.onnx"):
        read_pretrained(tmp_path / "net.onnx", "tiny")


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.features = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def test_the_head_is_what_is_computed_last_wherever_it_is_defined():
    assert last_layer(HeadFirst(), (1, 8, 8)) == "head"
    assert last_layer(nn.Flatten(), (1, 8, 8)) is None
    assert last_layer(network("torchvision/squeezenet1_1"), (3, *SIZE)) == "classifier.1"


def test_timm_is_not_loaded_unless_it_is_named():
    code = "import sys; from cpt_deploy.models import build_model; build_model('tiny', num_classes=2, "
    code += "in_channels=1, input_size=(8, 8)); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
