"""Write integer graphs as ONNX files, in the form that onnxruntime runs with integer kernels."""
