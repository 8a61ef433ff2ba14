"""From rows to logits: model versions in onnxruntime, and the batches in which requests are computed."""
