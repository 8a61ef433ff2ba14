"""The preprocessing of published weights is that of the libraries' own transforms."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.models.published import published_input
from cpt_deploy.models.torchvision_models import torchvision_names

SMOOTH = np.add.outer(np.linspace(0, 120, 500), np.linspace(0, 120, 600))
IMAGE = Image.fromarray(np.stack([SMOOTH, 240 - SMOOTH, SMOOTH / 2], axis=-1).astype(np.uint8))


def ours(name: str) -> Preprocessing:
    found = published_input(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "efficientnet_v2_s", "vit_b_16", "mobilenet_v3_small"])
def test_images_are_those_of_torchvisions_transforms(name: str) -> None:
    expected = torchvision.models.get_model_weights(name).DEFAULT.transforms()(IMAGE)
    got = torch.from_numpy(ours(f"torchvision/{name}").apply(IMAGE))
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet50", "mixer_b16_224"])
def test_images_are_those_of_timms_transforms(name: str) -> None:
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    config = timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict())
    expected = timm.data.create_transform(**config)(IMAGE)
    torch.testing.assert_close(torch.from_numpy(ours(f"timm/{name}").apply(IMAGE)), expected, atol=0.05, rtol=0)


def test_all_of_torchvisions_models_have_one_and_own_networks_none() -> None:
    assert all(published_input(f"torchvision/{name}") is not None for name in torchvision_names())
    assert published_input("resnet20") is None
    assert published_input("torchvision/resnet19") is None
