"""Integer language models as ONNX and as bundles."""
