"""ONNX files of any tool: which layers run on integers, and whether onnxruntime computes these integers exactly.

Needs the `onnx` package, and PyTorch to recompute integers.
"""
