"""cpt-deploy: from Cyclic Precision Training to a running endpoint.

Importing this package imports nothing heavy; the public names below are resolved on first use.
"""

import importlib
import os

# Otherwise onnxruntime reports the names and hashes of models to its maker; it reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_PUBLIC = {
    "Bundle": "cpt_deploy.bundle",
    "ImageProcessor": "cpt_deploy.bundle",
    "Preprocessing": "cpt_deploy.bundle",
    "TensorProcessor": "cpt_deploy.bundle",
    "TextProcessor": "cpt_deploy.bundle",
    "CyclicPrecision": "cpt_deploy.quantization",
    "IntegerExecutor": "cpt_deploy.integer",
    "QuantizationConfig": "cpt_deploy.quantization",
    "export_bundle": "cpt_deploy.export.prepared_model",
    "export_onnx": "cpt_deploy.export",
    "freeze": "cpt_deploy.integer",
    "prepare": "cpt_deploy.preparation",
    "calibrate": "cpt_deploy.quantization",
}

__all__ = [
    "Bundle",
    "CyclicPrecision",
    "ImageProcessor",
    "IntegerExecutor",
    "Preprocessing",
    "QuantizationConfig",
    "TensorProcessor",
    "TextProcessor",
    "__version__",
    "calibrate",
    "export_bundle",
    "export_onnx",
    "freeze",
    "prepare",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cpt_deploy' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
