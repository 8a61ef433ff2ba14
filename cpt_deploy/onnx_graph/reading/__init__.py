"""Read any ONNX file, and quantize what has an integer form in it; every other operator stays as it is."""

from cpt_deploy.onnx_graph.quantizing.quantizing import QuantizedOnnx, quantize_onnx
from cpt_deploy.onnx_graph.reading.loading import read_onnx
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork

__all__ = ["OnnxNetwork", "QuantizedOnnx", "quantize_onnx", "read_onnx"]
