"""The fused training step: each integer operation of the served network is one autograd operation."""
