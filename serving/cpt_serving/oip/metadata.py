"""What the protocol tells of the server and its models apart from inference."""

from collections.abc import Sequence
from typing import Any, Protocol

import cpt_deploy
from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.bundle.runtime.providers import CPU, provider_name
from cpt_serving.settings import ServeSettings

SERVER_NAME = "cpt-deploy"
PLATFORM = "onnx_onnxv1"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "statistics",
)


class Describable(Protocol):
    """What is asked of a model's adapter here."""

    bundle: OpenedBundle
    settings: ServeSettings

    def metadata(self) -> dict[str, Any]:
        """Return inputs and outputs as the protocol's metadata has them."""

    def config(self) -> dict[str, Any]:
        """Return them as Triton's model configuration has them."""


def server_metadata() -> dict[str, Any]:
    """Return who serves, and which extensions of the protocol it knows."""
    return {"name": SERVER_NAME, "version": cpt_deploy.__version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: Describable, versions: Sequence[str]) -> dict[str, Any]:
    """Return what a model takes and returns; -1 stands for any size."""
    return {"name": model.bundle.name, "versions": list(versions), "platform": PLATFORM, **model.metadata()}


def model_config(model: Describable) -> dict[str, Any]:
    """Return a model's configuration in Triton's form."""
    bundle, settings = model.bundle, model.settings
    return {
        "name": bundle.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        **model.config(),
        "instance_group": [
            {
                "name": bundle.name,
                "kind": "KIND_CPU" if provider_name(settings.provider) == CPU else "KIND_GPU",
                "count": settings.inferences_at_once,
            }
        ],
        "default_model_filename": bundle.onnx_path.name,
        "parameters": {
            "sha256": {"string_value": bundle.sha256},
            "version": {"string_value": bundle.version},
        },
    }
