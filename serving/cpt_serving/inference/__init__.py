"""The inference engine: model versions in onnxruntime, dynamic batching, and text generation."""
