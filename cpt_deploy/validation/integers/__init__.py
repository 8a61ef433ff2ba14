"""Exactness of integers: every integer recomputed and compared with onnxruntime's; overflow and saturation of sums."""
