"""A bundle's model in onnxruntime: sessions, execution providers, the processor, the operators that run."""
