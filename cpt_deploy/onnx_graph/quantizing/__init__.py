"""Quantize what has an integer form in an ONNX network; every other operator stays as it is."""

from cpt_deploy.onnx_graph.quantizing.quantizing import QuantizedOnnx, quantize_onnx

__all__ = ["QuantizedOnnx", "quantize_onnx"]
