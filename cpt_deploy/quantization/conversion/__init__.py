"""Convert a float network: capture its graph, quantize its layers and activations, compare with the network."""
