"""Names under which modules are added to a traced network: such as no module of the network has, nor any attribute."""

import keyword
import operator

from torch import fx, nn


def free_name(owner: nn.Module, name: str) -> str:
    """Return `name`, or what it takes of underscores behind it to be a name that `owner` can give to a new module."""
    while hasattr(owner, name) or keyword.iskeyword(name):
        name += "_"
    return name


def add_quantizer(traced: fx.GraphModule, container: str, name: str, module: nn.Module) -> str:
    """Add a quantizer to one of the containers that hold a network's quantizers.

    Args:
        traced: The network.
        container: "edges" or "layer_inputs"; the network may have modules of these names, beside which the container
            has another one.
        name: Name of the node before it, or of the layer that reads it.
        module: The quantizer.

    Returns:
        Its path in the network.
    """
    containers = traced.meta.setdefault("containers", {})
    if container not in containers:
        containers[container] = free_name(traced, container)
        traced.add_module(containers[container], nn.ModuleDict())
    holder = traced.get_submodule(containers[container])
    own = free_name(holder, name)
    holder.add_module(own, module)
    return f"{containers[container]}.{own}"


def own_name(node: fx.Node) -> str:
    """Return the name of a quantizer in its container."""
    return str(node.target).rpartition(".")[2]


def place(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put a module at a path of a graph's module, where there may be one that only holds its parameters."""
    try:
        operator.attrgetter(name)(traced)
    except AttributeError:
        traced.add_submodule(name, module)
    else:
        traced.set_submodule(name, module)
