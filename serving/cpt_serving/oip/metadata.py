"""What the protocol tells of the server and its models apart from inference."""

from collections.abc import Sequence
from typing import Any

import cpt_deploy
from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.language import LanguageBundle
from cpt_deploy.bundle.layout import LABELS_FILE
from cpt_deploy.bundle.providers import CPU, provider_name
from cpt_deploy.bundle.runtime import INPUT_NAME, OUTPUT_NAME
from cpt_serving.oip.inputs import NATIVE
from cpt_serving.oip.language import declared_inputs, declared_outputs
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


def server_metadata() -> dict[str, Any]:
    """Return who serves, and which extensions of the protocol it knows."""
    return {"name": SERVER_NAME, "version": cpt_deploy.__version__, "extensions": list(EXTENSIONS)}


def model_metadata(bundle: Bundle | LanguageBundle, versions: Sequence[str]) -> dict[str, Any]:
    """Return what a model takes and returns; -1 stands for any size."""
    tensors = _text_tensors(bundle) if isinstance(bundle, LanguageBundle) else _image_tensors(bundle)
    return {"name": bundle.name, "versions": list(versions), "platform": PLATFORM, **tensors}


def model_config(bundle: Bundle | LanguageBundle, settings: ServeSettings) -> dict[str, Any]:
    """Return a model's configuration in Triton's form."""
    tensors = _text_config(bundle) if isinstance(bundle, LanguageBundle) else _image_config(bundle, settings.max_rows)
    return {
        "name": bundle.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        **tensors,
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


def _image_tensors(bundle: Bundle) -> dict[str, Any]:
    return {
        "inputs": [{"name": INPUT_NAME, "datatype": NATIVE, "shape": [-1, *bundle.preprocessing.input_shape]}],
        "outputs": [{"name": OUTPUT_NAME, "datatype": NATIVE, "shape": [-1, len(bundle.labels)]}],
    }


def _image_config(bundle: Bundle, max_rows: int) -> dict[str, Any]:
    """Shapes are without the number of rows there."""
    return {
        "max_batch_size": max_rows,
        "input": [
            {
                "name": INPUT_NAME,
                "data_type": f"TYPE_{NATIVE}",
                "format": "FORMAT_NCHW",
                "dims": list(bundle.preprocessing.input_shape),
            }
        ],
        "output": [
            {
                "name": OUTPUT_NAME,
                "data_type": f"TYPE_{NATIVE}",
                "dims": [len(bundle.labels)],
                "label_filename": LABELS_FILE,
            }
        ],
    }


def _text_tensors(bundle: LanguageBundle) -> dict[str, Any]:
    inputs, outputs = (
        [{"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.dims} for tensor in tensors]
        for tensors in (declared_inputs(bundle.manifest), declared_outputs(bundle.manifest))
    )
    return {"inputs": inputs, "outputs": outputs}


def _text_config(bundle: LanguageBundle) -> dict[str, Any]:
    """0 as the batch size says that shapes are given in full."""
    inputs, outputs = (
        [{"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": tensor.dims} for tensor in tensors]
        for tensors in (declared_inputs(bundle.manifest), declared_outputs(bundle.manifest))
    )
    return {"max_batch_size": 0, "input": inputs, "output": outputs}
