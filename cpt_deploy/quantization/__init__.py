"""How tensors become integers while training: affine functions, layers, edges and `prepare(model)`."""

from cpt_deploy.quantization.config import QuantizationConfig
from cpt_deploy.quantization.model import LayerInfo, QuantizedModel, WeightBits
from cpt_deploy.quantization.portability import ReducedLayer, make_portable, reduced_layers
from cpt_deploy.quantization.prepare import prepare
from cpt_deploy.quantization.sensitivity import LayerSensitivity, allocate_bits, measure_sensitivity
from cpt_deploy.quantization.settling import settle
from cpt_deploy.quantization.symmetric import make_symmetric

__all__ = [
    "LayerInfo",
    "LayerSensitivity",
    "QuantizationConfig",
    "QuantizedModel",
    "ReducedLayer",
    "WeightBits",
    "allocate_bits",
    "make_portable",
    "make_symmetric",
    "measure_sensitivity",
    "prepare",
    "reduced_layers",
    "settle",
]
