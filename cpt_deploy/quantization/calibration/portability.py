"""Portable and native models: by default, integers cannot saturate on x86 processors without VNNI.

`make_native` removes the limits that ensure this; `reduced_layers` lists the layers that they affect.
"""

import torch

from cpt_deploy.precision.accumulators import ReducedLayer
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.numerics.affine import symmetric_quant_max
from cpt_deploy.quantization.scheduled_model import WeightBits

_EXECUTED_BITS = 8


def make_native(model: QuantizedModel) -> None:
    """Let weights keep their whole range in evaluation, calibration and freezing; the model is then not portable.

    By default no pair of quantized weights of a layer can saturate 16 bits: weights of 8 bits have a smaller range in
    channels that need it, while those of fewer bits keep their values, which `freeze` then executes at a smaller shift.
    Calibrate the model afterwards.

    Args:
        model: The model; its parameters do not change.
    """
    model.precision.native = True


def reduced_layers(model: QuantizedModel, weight_bits: WeightBits = None) -> list[ReducedLayer]:
    """Return the layers whose range is smaller than their bits allow, in the order of the graph.

    Args:
        model: The model.
        weight_bits: Bits of the scheduled weights, or of single layers by name; None means max_bits, at most 8.
    """
    found = []
    with torch.no_grad(), model.at_max_bits(weight_bits):
        for name, layer in _layers(model):
            bits = min(layer.precision.weight_bits_of(layer.index, layer.group), _EXECUTED_BITS)
            weight = layer.channel_weight
            full = torch.tensor(float(symmetric_quant_max(bits)), device=weight.device)
            quant_max = layer.limited_quant_max(full, weight).expand(len(weight))
            reduced = int((quant_max < full).sum())
            if reduced:
                found.append(ReducedLayer(name, len(quant_max), reduced, int(quant_max.min())))
    return found


def _layers(model: QuantizedModel) -> list[tuple[str, QuantizedLayer]]:
    """Return all quantized layers with their names, except embeddings, which do not multiply."""
    modules = [(info.name, model.get_submodule(f"network.{info.name}")) for info in model.layers()]
    return [
        (name, module)
        for name, module in modules
        if isinstance(module, QuantizedLayer) and not isinstance(module, QuantizedEmbedding)
    ]
