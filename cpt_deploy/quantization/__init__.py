"""How tensors become integers while training: affine functions, layers, edges and `prepare(model)`."""

from cpt_deploy.quantization.config import QuantizationConfig
from cpt_deploy.quantization.model import LayerInfo, QuantizedModel
from cpt_deploy.quantization.portability import ReducedLayer, make_portable, reduced_layers
from cpt_deploy.quantization.prepare import prepare
from cpt_deploy.quantization.settling import settle

__all__ = [
    "LayerInfo",
    "QuantizationConfig",
    "QuantizedModel",
    "ReducedLayer",
    "make_portable",
    "prepare",
    "reduced_layers",
    "settle",
]
