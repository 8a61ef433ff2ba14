"""Kernels of quantized training: one interface with backends in C (CPU), Triton (GPU) and plain torch."""

from cpt_deploy.quantization.kernels.interface import (
    Average,
    BatchNorm,
    Clamp,
    Grid,
    GridLevels,
    Kernels,
    Normalised,
    Observed,
    Site,
    Statistics,
    Terms,
    Unit,
)
from cpt_deploy.quantization.kernels.selection import Selection, active, kernels_on, load_native, native_levels

__all__ = [
    "Average",
    "BatchNorm",
    "Clamp",
    "Grid",
    "GridLevels",
    "Kernels",
    "Normalised",
    "Observed",
    "Selection",
    "Site",
    "Statistics",
    "Terms",
    "Unit",
    "active",
    "kernels_on",
    "load_native",
    "native_levels",
]
