"""Read any ONNX file, bring it to one form, and run it."""

from cpt_deploy.onnx_graph.reading.loading import read_onnx
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork

__all__ = ["OnnxNetwork", "read_onnx"]
