"""Run a bundle's model in onnxruntime: sessions, execution providers, the processor, the operators of the graph."""
