"""Choose names of modules that are added to a network, and rename a network's own that a graph cannot have.

A `torch.fx.GraphModule` holds the modules of a network besides its own attributes, and its generated code uses their
names.
"""

import keyword
import operator
from collections.abc import ItemsView, Iterator, KeysView
from typing import Any

from torch import fx, nn


def free_name(owner: nn.Module, name: str) -> str:
    """Return `name`, with underscores appended until it is no keyword and no attribute of `owner`."""
    while hasattr(owner, name) or keyword.iskeyword(name):
        name += "_"
    return name


def add_quantizer(traced: fx.GraphModule, container: str, name: str, module: nn.Module) -> str:
    """Add a quantizer to one of the containers that hold a network's quantizers.

    Args:
        traced: The network.
        container: "activation_quantizers" or "requantize". The network may have modules of these names; the container
            then gets another one.
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
    """Set a module at a path of a graph's module, where there may be one that only holds its parameters."""
    try:
        operator.attrgetter(name)(traced)
    except AttributeError:
        traced.add_submodule(name, module)
    else:
        traced.set_submodule(name, module)


def replace_by_module(
    traced: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, arguments: tuple[Any, ...]
) -> fx.Node:
    """Replace a node by a call of a module."""
    place(traced, name, module)
    with traced.graph.inserting_after(node):
        lifted = traced.graph.call_module(name, arguments)
    lifted.meta.update(node.meta)
    node.replace_all_uses_with(lifted)
    traced.graph.erase_node(node)
    return lifted


# --- a network's own names --------------------------------------------------------------------------------------------


class _RenamedDict(nn.ModuleDict):
    """A ModuleDict whose modules are registered under other names than their keys."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.by_key = dict(modules)  # a plain dictionary, whose modules are not registered again

    def __getitem__(self, key: str) -> nn.Module:
        return self.by_key[key]

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_key)

    def keys(self) -> KeysView[str]:
        """Return the original keys."""
        return self.by_key.keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """Return the original keys with the modules."""
        return self.by_key.items()


def rename_clashing(model: nn.Module) -> None:
    """Rename modules, parameters and buffers whose names a graph cannot have, in place.

    Such names are Python's keywords, `self`, and at the top level those of attributes of a GraphModule, such as `graph`
    or `meta`. The model's own code still finds everything under its old name.
    """
    graph_module = fx.GraphModule(nn.Module(), fx.Graph())
    for path, module in list(model.named_modules()):
        kept: set[str] = set()
        for store in (module._modules, module._parameters, module._buffers):
            clashing = [n for n in store if keyword.iskeyword(n) or (not path and _is_taken(graph_module, n))]
            kept.update(clashing)
        if not kept:
            continue
        if type(module) is nn.ModuleDict:
            renamed = _RenamedDict(dict(module.items()))
            renamed._modules, renamed.training = module._modules, module.training
            model.set_submodule(path, renamed)
            module = renamed  # noqa: PLW2901
        for store in (module._modules, module._parameters, module._buffers):
            _rename(module, store, kept)


def _is_taken(graph_module: fx.GraphModule, name: str) -> bool:
    return name == "self" or (name not in ("training",) and hasattr(graph_module, name))


def _rename(module: nn.Module, store: dict[str, Any], names: set[str]) -> None:
    everything = list(store.items())
    store.clear()
    for name, value in everything:
        new = name
        while name in names and (new == name or hasattr(module, new) or new in dict(everything)):
            new += "_"
        store[new] = value
        if name in names:
            module.__dict__[name] = value
