"""Export an integer model: to an ONNX file with quantizers on every activation, and to the bundle that ships."""

from cpt_deploy.export.bundle_export import ModelIdentity, export_bundle
from cpt_deploy.export.onnx_file import export_onnx
from cpt_deploy.onnx_graph.float_network import float_model, write_float_onnx
from cpt_deploy.onnx_graph.packing import DEFAULT_OPSET, smallest_opset
from cpt_deploy.onnx_graph.writer import write_onnx

__all__ = [
    "DEFAULT_OPSET",
    "ModelIdentity",
    "export_bundle",
    "export_onnx",
    "float_model",
    "smallest_opset",
    "write_float_onnx",
    "write_onnx",
]
