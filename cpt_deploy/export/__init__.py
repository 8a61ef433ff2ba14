"""An integer model as files: ONNX with quantizers on every edge, and the bundle that ships."""

from cpt_deploy.export.bundle_export import ModelIdentity, export_bundle
from cpt_deploy.export.float_onnx import float_model, write_float_onnx
from cpt_deploy.export.onnx_writer import write_onnx
from cpt_deploy.export.packing import DEFAULT_OPSET, smallest_opset

__all__ = [
    "DEFAULT_OPSET",
    "ModelIdentity",
    "export_bundle",
    "float_model",
    "smallest_opset",
    "write_float_onnx",
    "write_onnx",
]
