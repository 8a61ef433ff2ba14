"""Kernels of quantized training: one interface with backends in C (CPU), Triton (GPU) and plain torch."""

from cpt_deploy.quantization.kernels.interface import (
    AccumulatorScale,
    Average,
    BatchNorm,
    Clamp,
    GradientTerms,
    Kernels,
    Normalised,
    Observed,
    OutputGradient,
    QuantizationParameters,
    QuantMax,
    Statistics,
)
from cpt_deploy.quantization.kernels.selection import Selection, active, kernels_on, load_native, native_levels

__all__ = [
    "AccumulatorScale",
    "Average",
    "BatchNorm",
    "Clamp",
    "GradientTerms",
    "Kernels",
    "Normalised",
    "Observed",
    "OutputGradient",
    "QuantMax",
    "QuantizationParameters",
    "Selection",
    "Statistics",
    "active",
    "kernels_on",
    "load_native",
    "native_levels",
]
