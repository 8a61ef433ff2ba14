"""Which layers of a float model are quantized, by patterns of their names and by types of modules."""

import math
import operator
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import fx, nn

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.quantization.modules.layers import CONVOLUTIONS
from cpt_deploy.quantization.scheduled_model import LayerInfo
from cpt_deploy.quantization.state.config import Choice, QuantizationConfig
from cpt_deploy.registry import nearest_names

EXCLUDED = "excluded"
"""Key in a node's meta: it computes an excluded layer, which stays in float."""


def excluded_modules(model: nn.Module, config: QuantizationConfig) -> frozenset[str]:
    """Return the paths of all modules with parameters of their own that stay in float.

    A choice applies to the modules that it matches and to all modules inside of them.

    Args:
        model: The float model.
        config: Its `include` (nothing means all layers) and `exclude`, which takes precedence; its scheme, as "sbm"
            quantizes convolutions only.

    Raises:
        UsageError: If a choice matches no module; the hint has the nearest names.
        ConversionError: If the scheme is "sbm" and no convolution is left to quantize.
    """
    names = [name for name, _ in model.named_modules() if name]
    for choice in (*config.include, *config.exclude):
        if not any(_matches(module, name, choice) for name, module in model.named_modules() if name):
            shown = repr(choice) if isinstance(choice, str) else choice.__name__
            hint = nearest_names(choice, names) if isinstance(choice, str) else None
            raise UsageError(f"Expected include and exclude to match modules, but {shown} matches none", hint=hint)
    excluded, convolutions = set(), 0
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        included = not config.include or _chosen(model, name, config.include)
        included &= config.scheme != "sbm" or isinstance(module, CONVOLUTIONS)
        if not included or _chosen(model, name, config.exclude):
            excluded.add(name)
        else:
            convolutions += isinstance(module, CONVOLUTIONS)
    if config.scheme == "sbm" and not convolutions:
        raise ConversionError("Expected a model with convolutions, which the scheme 'sbm' quantizes, but got none")
    return frozenset(excluded)


def mark_excluded(traced: fx.GraphModule, excluded: frozenset[str]) -> None:
    """Mark the nodes of a captured graph that multiply with parameters of excluded modules."""
    for node in traced.graph.nodes:
        if node.op != "get_attr" and any(_owner(name) in excluded for name in _parameters(node)):
            node.meta[EXCLUDED] = True


def float_layers(traced: fx.GraphModule) -> list[LayerInfo]:
    """Return the excluded layers of a captured graph, in the order in which they compute.

    Multiply-accumulates are those of one sample: each weight is used once a position of the result.
    """
    weights: dict[str, int] = {}
    macs: dict[str, int] = {}
    for node in traced.graph.nodes:
        if not node.meta.get(EXCLUDED):
            continue
        names = [name for name in _parameters(node) if _owner(name)]
        values = [operator.attrgetter(name)(traced) for name in names]
        matrices = sum(value.numel() for value in values if value.dim() > 1)
        if not matrices:
            continue  # a normalisation
        owner = _owner(names[0])
        weights[owner] = matrices
        macs[owner] = macs.get(owner, 0) + matrices * _positions(node)
    return [LayerInfo(name, macs[name], "float", weights[name]) for name in weights]


def _positions(node: fx.Node) -> int:
    """Return how often a sample's result uses each weight; an embedding multiplies with none."""
    operator_name = str(node.target)
    if "embedding" in operator_name:
        return 0
    shape = node.meta.get("shape") or next(user.meta["shape"] for user in node.users if "shape" in user.meta)
    channels = shape[1] if "conv" in operator_name else shape[-1]
    return int(math.prod(shape)) // (2 * int(channels))  # shapes are those of a batch of two


def _parameters(node: fx.Node) -> Iterator[str]:
    """Yield the names of the parameters that a node reads, perhaps through operations on parameters alone."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield str(source.target)
        elif source.all_input_nodes and all(inner.op == "get_attr" for inner in source.all_input_nodes):
            yield from _parameters(source)


def _owner(parameter: str) -> str:
    """Return the path of the module that holds a parameter, parametrized or not."""
    owner, _, parametrized = parameter.partition(".parametrizations.")
    return owner if parametrized else parameter.rpartition(".")[0]


def _chosen(model: nn.Module, name: str, choices: Sequence[Choice]) -> bool:
    """Return whether a module or one around it matches a choice."""
    parts = name.split(".")
    paths = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return any(_matches(model.get_submodule(path), path, choice) for path in paths for choice in choices)


def _matches(module: nn.Module, name: str, choice: Choice) -> bool:
    return fnmatchcase(name, choice) if isinstance(choice, str) else isinstance(module, choice)
