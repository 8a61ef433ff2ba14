"""Kernels in Triton: the backend for GPUs, and int8 products on tensor cores."""
