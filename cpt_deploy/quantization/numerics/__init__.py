"""The arithmetic of quantization as pure functions: affine maps, rounding, folded weights, bounds of sums."""
