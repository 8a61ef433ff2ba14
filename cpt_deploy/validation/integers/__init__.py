"""Every integer of a model, computed a second time and compared with onnxruntime's; sums that overflow."""
