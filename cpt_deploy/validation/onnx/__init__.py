"""Comparison of a bundle's ONNX file with its integer graph, and loading of its further formats."""
