"""Models are portable, so that their integers cannot saturate on x86 processors without VNNI, unless made native."""

from dataclasses import dataclass

import torch

from cpt_deploy.quantization.modules.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.numerics.affine import symmetric_levels
from cpt_deploy.quantization.state.scheduled_model import CyclingModel, WeightBits

_EXECUTED_BITS = 8


@dataclass(frozen=True, slots=True)
class ReducedLayer:
    """What the limits of sums take from a layer: that of pairs, and in layers of many inputs that of int32.

    Attributes:
        layer: Its module path.
        channels: Number of its output channels.
        reduced_channels: How many of them have fewer codes than their bits allow.
        least_levels: The smallest greatest code of a channel; 127 is that of 8 bits.
    """

    layer: str
    channels: int
    reduced_channels: int
    least_levels: int


def make_native(model: CyclingModel) -> None:
    """Let weights keep their whole range in evaluation, settling and freezing alike; the model is not portable then.

    Otherwise no two codes of a layer add up to what saturates 16 bits: weights of 8 bits have less range in channels
    that need it, while those of fewer bits keep their codes, which `freeze` then executes at a smaller shift. The model
    is to be settled afterwards.

    Args:
        model: The model; its parameters do not change.
    """
    model.precision.native = True


def reduced_layers(model: CyclingModel, weight_bits: WeightBits = None) -> list[ReducedLayer]:
    """Return the layers that have fewer codes than their bits allow, in the order of the graph.

    Args:
        model: The model.
        weight_bits: Bits of the cycling weights, or of single layers by name; None is the upper bound's, at most 8.
    """
    found = []
    with torch.no_grad(), model.upper_bound(weight_bits):
        for name, layer in _layers(model):
            bits = min(layer.precision.weight_bits_of(layer.index, layer.role), _EXECUTED_BITS)
            weight = layer.channel_weight
            full = torch.tensor(float(symmetric_levels(bits)), device=weight.device)
            levels = layer.limited_levels(full, weight).expand(len(weight))
            reduced = int((levels < full).sum())
            if reduced:
                found.append(ReducedLayer(name, len(levels), reduced, int(levels.min())))
    return found


def _layers(model: CyclingModel) -> list[tuple[str, QuantizedLayer]]:
    """Return the layers that multiply, with their names."""
    modules = [(info.name, model.get_submodule(f"network.{info.name}")) for info in model.layers()]
    return [
        (name, module)
        for name, module in modules
        if isinstance(module, QuantizedLayer) and not isinstance(module, QuantizedEmbedding)
    ]
