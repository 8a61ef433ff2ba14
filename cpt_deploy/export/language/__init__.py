"""Export integer language models as ONNX and as bundles."""
