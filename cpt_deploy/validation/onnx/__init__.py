"""The ONNX file against the integer graph beside it, constant by constant."""
