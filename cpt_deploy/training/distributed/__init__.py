"""Distributed training: the process group, and the values that its processes exchange in each step."""
