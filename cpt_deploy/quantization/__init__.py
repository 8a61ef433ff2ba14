"""How tensors become integers while training: affine functions, layers, edges and `prepare(model)`."""

from cpt_deploy.quantization.config import LayerGroup, QuantizationConfig
from cpt_deploy.quantization.cycling import CyclingModel, LayerInfo, WeightBits
from cpt_deploy.quantization.language import QuantizedLanguageModel, Score, prepare_language_model
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.offsets import round_offsets
from cpt_deploy.quantization.portability import ReducedLayer, make_native, reduced_layers
from cpt_deploy.quantization.prepare import prepare
from cpt_deploy.quantization.sensitivity import (
    LayerSensitivity,
    allocate_bits,
    measure_loss_sensitivity,
    measure_sensitivity,
)
from cpt_deploy.quantization.settling import estimate, observing, settle
from cpt_deploy.quantization.symmetric import make_symmetric
from cpt_deploy.quantization.synchronized_norm import set_synchronized, synchronize_norms

__all__ = [
    "CyclingModel",
    "LayerGroup",
    "LayerInfo",
    "LayerSensitivity",
    "QuantizationConfig",
    "QuantizedLanguageModel",
    "QuantizedModel",
    "ReducedLayer",
    "Score",
    "WeightBits",
    "allocate_bits",
    "estimate",
    "make_native",
    "make_symmetric",
    "measure_loss_sensitivity",
    "measure_sensitivity",
    "observing",
    "prepare",
    "prepare_language_model",
    "reduced_layers",
    "round_offsets",
    "set_synchronized",
    "settle",
    "synchronize_norms",
]
