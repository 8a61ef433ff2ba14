"""Measurements of latency, memory and size of models in onnxruntime, side by side."""
