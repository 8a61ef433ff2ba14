"""Quantization in training: affine functions, quantized layers, activation quantizers and `prepare(model)`."""

from cpt_deploy.quantization.calibration.bias_rounding import round_biases
from cpt_deploy.quantization.calibration.bit_allocation import (
    LayerSensitivity,
    allocate_bits,
    class_divergence,
    measure_sensitivity,
)
from cpt_deploy.quantization.calibration.calibrate import calibrate, calibrating, estimate
from cpt_deploy.quantization.calibration.portability import make_native, reduced_layers
from cpt_deploy.quantization.calibration.symmetric import make_symmetric
from cpt_deploy.quantization.conversion.prepare import prepare
from cpt_deploy.quantization.cyclic_precision import CyclicPrecision
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modules.synchronized_norm import set_synchronized, synchronize_norms
from cpt_deploy.quantization.scheduled_model import WeightBits
from cpt_deploy.quantization.state.config import LayerGroup, QuantizationConfig

__all__ = [
    "CyclicPrecision",
    "LayerGroup",
    "LayerSensitivity",
    "QuantizationConfig",
    "QuantizedModel",
    "WeightBits",
    "allocate_bits",
    "calibrate",
    "calibrating",
    "class_divergence",
    "estimate",
    "make_native",
    "make_symmetric",
    "measure_sensitivity",
    "prepare",
    "reduced_layers",
    "round_biases",
    "set_synchronized",
    "synchronize_norms",
]
