"""From a float network to a graph of quantized layers: what becomes integers, and where tensors are quantized."""
