"""Remove auxiliary training heads from published weights; the networks here are built without them."""

from collections.abc import Mapping

from torch import Tensor, nn

_HEADS = ("aux1", "aux2", "AuxLogits")
"""Their names in the GoogLeNet and the Inception v3 of torchvision and timm."""


def split_auxiliary_heads(
    network: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Separate the tensors of auxiliary heads that a network leaves out.

    Args:
        network: The network that the tensors are for.
        tensors: Tensors of a state dict by name.

    Returns:
        The other tensors, and the paths of the heads that were left out, such as `("aux1", "aux2")`. Only attributes
        that are None leave out a head; a network with no such attribute, or with a head, leaves out nothing.
    """
    places = [
        f"{path}.{head}" if path else head
        for path, module in network.named_modules()
        for head in _HEADS
        if getattr(module, head, module) is None
    ]
    heads = tuple(place for place in places if any(name.startswith(f"{place}.") for name in tensors))
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(f"{head}." for head in heads))}
    return own, heads
