"""Building models by name: shapes, traceability, arguments, and the errors that wrong requests get."""

from pathlib import Path

import pytest
import torch
import torch.fx
from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models import build_model, model_names
from cpt_deploy.models.catalog import models
from cpt_deploy.models.torchvision_models import torchvision_names

SMALL = ["tiny", "resnet20", "resnet38", "mobilenetv2"]
TORCHVISION = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
]


def build_anywhere(name: str, **settings) -> nn.Module:
    """Build on the meta device where a model allows, which takes no time."""
    with torch.device("cpu" if "regnet" in name else "meta"):
        return build_model(name, **settings)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, (8, 8)), (3, 100, (32, 32)), (2, 3, (28, 20))])
def test_own_models_take_any_channels_classes_and_small_size(name, channels, classes, size):
    model = build_model(name, num_classes=classes, in_channels=channels, input_size=size).eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, *size)).shape == (2, classes)


@pytest.mark.parametrize("name", models.names())
def test_own_models_trace_and_the_trace_computes_the_same(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, in_channels=1, input_size=(8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_take_gray_images_and_trace(name):
    model = build_anywhere(f"torchvision/{name}", num_classes=7, in_channels=1, input_size=(224, 224)).eval()
    torch.fx.symbolic_trace(model)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 1


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_32", (64, 64)), ("maxvit_t", (448, 448)), ("inception_v3", (96, 96))]
)
def test_torchvision_models_that_depend_on_the_size_are_built_for_it(name, size):
    build_anywhere(f"torchvision/{name}", num_classes=5, in_channels=3, input_size=size)


def test_a_replaced_first_convolution_keeps_the_spread_of_the_original():
    torch.manual_seed(0)
    rgb = build_model("torchvision/resnet18", num_classes=2, in_channels=3, input_size=(32, 32))
    gray = build_model("torchvision/resnet18", num_classes=2, in_channels=1, input_size=(32, 32))
    assert gray.conv1.weight.std().item() == pytest.approx(rgb.conv1.weight.std().item(), rel=0.1)
    assert gray.conv1.stride == rgb.conv1.stride
    assert gray.conv1.bias is None


def test_the_same_seed_gives_the_same_weights():
    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        model = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    assert torch.equal(weights(), weights())


def test_building_leaves_the_model_in_training_mode_with_fresh_statistics():
    model = build_model("tiny", num_classes=10, in_channels=1, input_size=(8, 8))
    assert model.training
    assert not model.bn1.running_mean.any()


def test_names_hold_own_and_torchvision_models_and_follow_a_pattern():
    assert set(model_names()) == {*models.names(), *(f"torchvision/{name}" for name in torchvision_names())}
    assert model_names("resnet*") == [
        "resnet110",
        "resnet152",
        "resnet164",
        "resnet20",
        "resnet38",
        "resnet74",
        "resnet8",
    ]
    assert "torchvision/resnet18" in model_names("*resnet18")
    assert not [name for name in torchvision_names() if "rcnn" in name or "deeplab" in name or "raft" in name]


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet21", "resnet20"), ("torchvision/resnet17", "resnet18"), ("torchvison/resnet18", "torchvision/resnet18")],
)
def test_unknown_names_suggest_the_nearest(name, near):
    with pytest.raises(UsageError) as caught:
        build_model(name, num_classes=2, in_channels=3, input_size=(32, 32))
    assert near in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["tiny", "torchvision/squeezenet1_1"])
def test_arguments_that_a_model_does_not_take_are_named(name):
    with pytest.raises(UsageError, match="depth_of_field"):
        build_model(name, num_classes=2, in_channels=3, input_size=(32, 32), depth_of_field=3)


def test_arguments_reach_the_model():
    model = build_model("resnet20", num_classes=2, in_channels=3, input_size=(32, 32), width=4)
    assert model.fc.in_features == 16
    dropout = build_anywhere("torchvision/mobilenet_v2", num_classes=2, in_channels=3, input_size=(32, 32), dropout=0.5)
    assert dropout.classifier[0].p == 0.5


@pytest.mark.parametrize("weights", ["DEFAULT", None])
def test_weights_of_torchvision_cannot_be_asked_for(weights):
    with pytest.raises(UsageError, match="weights"):
        build_model("torchvision/resnet18", num_classes=2, in_channels=3, input_size=(32, 32), weights=weights)


def test_images_too_small_for_a_model_are_a_usage_error():
    with pytest.raises(UsageError, match="3 x 8 x 8"):
        build_anywhere("torchvision/alexnet", num_classes=2, in_channels=3, input_size=(8, 8))


def test_sizes_that_a_model_cannot_be_built_for_are_a_usage_error():
    with pytest.raises(UsageError, match=r"vit_b_32 can be built with, .*\(16, 16\).* fail: Input shape indivisible"):
        build_model("torchvision/vit_b_32", num_classes=2, in_channels=3, input_size=(16, 16))


def test_oblong_images_are_refused_by_vision_transformers():
    with pytest.raises(UsageError, match="square"):
        build_anywhere("torchvision/vit_b_16", num_classes=2, in_channels=3, input_size=(32, 64))


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"models_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes, in_channels, hidden=4):\n"
        "        super().__init__(nn.Conv2d(in_channels, hidden, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(hidden, num_classes))\n"
        "def sized(**shape):\n"
        "    height, width = shape['input_size']\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape['in_channels'] * height * width, 10))\n"
        "def no_module():\n"
        "    return 'net'\n"
        "def two_outputs():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize("attribute", ["Net", "sized"])
def test_a_users_factory_gets_what_it_has_parameters_for(user_module, attribute):
    model = build_model(f"{user_module}:{attribute}", num_classes=10, in_channels=1, input_size=(8, 8))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_arguments_reach_a_users_factory(user_module):
    model = build_model(f"{user_module}:Net", num_classes=2, in_channels=1, input_size=(8, 8), hidden=9)
    assert model[0].out_channels == 9


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("no_module", "Module"), ("number", "callable"), ("two_outputs", r"\(1, 10\)"), ("absent", "absent")],
)
def test_a_factory_that_gives_no_such_model_is_refused(user_module, attribute, message):
    with pytest.raises(UsageError, match=message):
        build_model(f"{user_module}:{attribute}", num_classes=10, in_channels=1, input_size=(8, 8))


def test_what_a_users_factory_is_given_is_said(user_module):
    with pytest.raises(UsageError) as wrong:
        build_model(f"{user_module}:Net", num_classes=10, in_channels=1, input_size=(8, 8), width=3)
    assert wrong.value.hint == (
        "num_classes, in_channels, input_size are given to models with such parameters, others as model.args.NAME=VALUE"
    )
    with pytest.raises(UsageError) as missing:
        build_model(f"{user_module}:net", num_classes=10, in_channels=1, input_size=(8, 8))
    assert missing.value.hint == "did you mean Net?"
