"""Quantize what has an integer form in an ONNX network."""
