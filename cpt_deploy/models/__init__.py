"""Models that a recipe can name: the paper's CIFAR networks, a tiny one, torchvision's, timm's, and the user's own."""

from cpt_deploy.models.catalog import build_model, model_names
from cpt_deploy.models.summary import describe_model

__all__ = [
    "build_model",
    "describe_model",
    "model_names",
]
