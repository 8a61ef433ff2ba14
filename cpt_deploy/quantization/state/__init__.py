"""Precision of a quantized model: configuration, current bits, layer groups, portability and symmetry."""
