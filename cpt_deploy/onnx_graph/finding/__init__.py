"""Find what of an ONNX network has an integer form, and choose which of it runs on integers."""
