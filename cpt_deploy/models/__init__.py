"""Models that a recipe can name: the paper's CIFAR networks, a tiny one, torchvision's, timm's, and the user's own."""

from cpt_deploy.models.catalog import build_model, model_names, models
from cpt_deploy.models.cifar_mobilenet import CifarMobileNetV2
from cpt_deploy.models.cifar_resnet import CifarResNet
from cpt_deploy.models.summary import ModelSummary, describe_model

__all__ = [
    "CifarMobileNetV2",
    "CifarResNet",
    "ModelSummary",
    "build_model",
    "describe_model",
    "model_names",
    "models",
]
