"""Ranges and BatchNorm statistics at the served precision, and what follows: biases, bits by layer."""
