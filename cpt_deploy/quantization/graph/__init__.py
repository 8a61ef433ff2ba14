"""Convert a float network to a graph of quantized layers, with quantizers where operations become integers."""
