"""Kernels of quantized training: one interface, compiled for the CPU where a compiler was there, else plain torch."""

from cpt_deploy.quantization.kernels.interface import Clamp, Grid, Kernels, Site, Statistics, Terms
from cpt_deploy.quantization.kernels.selection import Selection, active, kernels_on, load_native, native_levels

__all__ = [
    "Clamp",
    "Grid",
    "Kernels",
    "Selection",
    "Site",
    "Statistics",
    "Terms",
    "active",
    "kernels_on",
    "load_native",
    "native_levels",
]
