"""The arithmetic of quantization as pure functions: affine maps, rounding, folding, limits of sums."""
