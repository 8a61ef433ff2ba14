"""Latency, memory and size in onnxruntime, measured side by side."""
