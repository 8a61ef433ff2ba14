"""The arithmetic of onnxruntime's integer kernels, operator by operator, bit for bit."""
