"""timm's models by name; without timm one line says what to install."""

from importlib.util import find_spec

import pytest
import torch

from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_deploy.models import build_model, model_names, timm_models

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="needs timm: pip install timm")


@needs_timm
@pytest.mark.parametrize(("name", "size"), [("timm/resnet10t", (40, 32)), ("timm/vit_tiny_patch16_224", (32, 48))])
def test_they_take_any_channels_classes_and_size(name, size):
    model = build_model(name, num_classes=7, in_channels=1, input_size=size).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, *size)).shape == (2, 7)


@needs_timm
@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("timm/resnet10x", {}, "a model of timm"),
        ("timm/resnet10t", {"wings": 2}, "arguments that timm's resnet10t takes"),
        ("timm/vit_tiny_patch16_224", {"depth": "two"}, "arguments that timm's"),
    ],
)
def test_unfit_names_and_arguments_are_refused(name, args, message):
    with pytest.raises(UsageError, match=message):
        build_model(name, num_classes=7, in_channels=3, input_size=(32, 32), **args)


@needs_timm
def test_their_names_are_listed_where_asked_for():
    assert "timm/resnet10t" in model_names("timm/resnet1*")
    assert not [name for name in model_names() if name.startswith("timm/")]


def test_without_timm_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    monkeypatch.setattr(timm_models, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="timm"):
        build_model("timm/resnet10t", num_classes=7, in_channels=3, input_size=(32, 32))
    assert model_names("timm/*") == []
