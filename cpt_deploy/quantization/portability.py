"""A model whose integers cannot saturate on x86 processors without VNNI: its layers' codes keep the limit of a pair."""

from dataclasses import dataclass

import torch

from cpt_deploy.quantization.affine import symmetric_levels
from cpt_deploy.quantization.cycling import WeightBits
from cpt_deploy.quantization.language import QuantizedLanguageModel
from cpt_deploy.quantization.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.pairs import pair_limit

_EXECUTED_BITS = 8


@dataclass(frozen=True, slots=True)
class ReducedLayer:
    """What portability takes from a layer.

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


def make_portable(model: QuantizedModel | QuantizedLanguageModel, activation_bits: int | None = None) -> None:
    """Let no two codes of a layer add up to what saturates 16 bits, in evaluation, settling and freezing alike.

    Weights of 8 bits lose range in the channels that need it and are rounded anew, so the model is to be settled
    afterwards; those of fewer bits keep their codes, which `freeze` then executes at a smaller shift, and
    `freeze_language_model` as they are. Rows of an Embedding are looked up, not multiplied, and keep theirs. A model
    that was made symmetric stays as it is: two products with signed activations, at most 128 · 127 each, fit into 16
    bits.

    Args:
        model: The model; its parameters do not change.
        activation_bits: Bits of the cycling activations. Layers read those that hold the upper bound too, so only
            more bits than theirs count; None is theirs, at most 8.
    """
    if all(edge.symmetric for _, edge in model.edges()):
        return
    bits = max(min(model.config.upper, _EXECUTED_BITS), activation_bits or 0)
    for _, layer in _layers(model):
        layer.pair_limit = pair_limit(bits)


def reduced_layers(
    model: QuantizedModel | QuantizedLanguageModel, weight_bits: WeightBits = None
) -> list[ReducedLayer]:
    """Return the layers in which `make_portable` takes codes away, in the order of the graph.

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


def _layers(model: QuantizedModel | QuantizedLanguageModel) -> list[tuple[str, QuantizedLayer]]:
    """Return the layers that multiply, with their names."""
    modules = [(info.name, model.network.get_submodule(info.name)) for info in model.layers()]
    return [
        (name, module)
        for name, module in modules
        if isinstance(module, QuantizedLayer) and not isinstance(module, QuantizedEmbedding)
    ]
