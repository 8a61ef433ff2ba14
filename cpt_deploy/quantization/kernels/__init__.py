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
from cpt_deploy.quantization.kernels.selection import active, kernels_on

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
    "Statistics",
    "active",
    "kernels_on",
]
