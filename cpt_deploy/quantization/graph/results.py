"""Flatten a network's result (tuples, lists, dictionaries, dataclasses) to a list of tensors, and rebuild it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.graph.signature import zeros_of
from cpt_deploy.signature import OUTPUT_NAME, Signature, Size, TensorSpec, size_of


class _Leaf(Enum):
    TENSOR = "placeholder of a tensor among the leaves of a structure"


#: Number of sizes of the free dimensions at which the shapes of results are measured.
_TRIALS = 4
_CONSTANTS = (bool, int, float, str, type(None))


def is_any_tensor(leaf: Any) -> bool:
    """Return whether a part of a result is a tensor, or represents one in a graph."""
    return isinstance(leaf, Tensor | fx.Proxy | fx.Node)


class Structure:
    """Nested structure of the tensors that a network returns.

    Attributes:
        names: Names of the tensors, by their position: "logits" for a single tensor, "output_1" in tuples, keys of
            dictionaries, fields of dataclasses.
    """

    def __init__(self, result: Any) -> None:
        """Record the structure of a result.

        Raises:
            ConversionError: If it has no tensors, or anything besides tensors and constants.
        """
        _register(result)
        paths, self._spec = _pytree.tree_flatten_with_path(result)
        for _, leaf in paths:
            if not isinstance(leaf, (Tensor, *_CONSTANTS)):
                raise ConversionError(
                    f"Expected a network that returns tensors in tuples, lists, dictionaries or dataclasses, but it "
                    f"returns a {type(leaf).__name__}",
                    hint="wrap it in a module whose forward returns the tensors; of transformers' models: "
                    "config.use_cache=False",
                )
        self._leaves = [_Leaf.TENSOR if isinstance(leaf, Tensor) else leaf for _, leaf in paths]
        self.names = _distinct([_name(path) for path, leaf in paths if isinstance(leaf, Tensor)])
        if not self.names:
            raise ConversionError("Expected a network that returns tensors, but it returns none")
        self.is_one_tensor = isinstance(result, Tensor)

    def __eq__(self, other: object) -> bool:
        """Return whether two results have the same structure, constants included."""
        return isinstance(other, Structure) and (self._spec, self._leaves) == (other._spec, other._leaves)

    __hash__ = None  # type: ignore[assignment]

    def tensors(self, result: Any, is_tensor: Callable[[Any], bool] = is_any_tensor) -> list[Any]:
        """Return the tensors of a result, or the nodes or proxies that represent them.

        Raises:
            ValueError: If it has another structure.
        """
        leaves, spec = _pytree.tree_flatten(result)
        found = [_Leaf.TENSOR if is_tensor(leaf) else leaf for leaf in leaves]
        if (spec, found) != (self._spec, self._leaves):
            raise ValueError("its result has another structure than when the network runs")
        return [leaf for leaf in leaves if is_tensor(leaf)]

    def built(self, tensors: Sequence[Any]) -> Any:
        """Rebuild a result of the network from its tensors."""
        if self.is_one_tensor:
            return tensors[0]
        remaining = iter(tensors)
        return _pytree.tree_unflatten(
            [next(remaining) if leaf is _Leaf.TENSOR else leaf for leaf in self._leaves], self._spec
        )


def _register(result: Any) -> None:
    """Register the dataclasses of a result with pytree, at any depth."""
    for leaf in _pytree.tree_leaves(result):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            _register(leaf)


def _name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
    name = "_".join("".join(c if c.isalnum() or c == "_" else "_" for c in part) for part in parts)
    return f"output_{name}" if name[:1].isdigit() else name or OUTPUT_NAME


def _distinct(names: list[str]) -> tuple[str, ...]:
    taken: list[str] = []
    for name in names:
        while name in taken:
            name += "_"  # noqa: PLW2901
        taken.append(name)
    return tuple(taken)


def complete_signature(network: fx.GraphModule, signature: Signature, names: Sequence[str]) -> Signature:
    """Return a signature with the outputs of a network, found by running it on zeros in evaluation mode.

    Args:
        network: Network that takes the tensors of the signature, and returns one tensor or a tuple of them.
        signature: The inputs.
        names: Names of the outputs; one that is also an input's gets the suffix "_output".

    Raises:
        ConversionError: If the first dimension of a result is not the batch.
    """
    # two sizes determine an affine function, two more check that it is affine
    shapes = _shapes(network, signature, range(_TRIALS if signature.free else 1))
    taken = {tensor.name for tensor in signature.inputs}
    outputs = []
    for given, seen in zip(names, zip(*shapes, strict=True), strict=True):
        name = f"{given}_output" if given in taken else given
        shape = tuple(
            _size(signature, f"{name}_size_{axis}", [sizes[axis] for sizes in seen]) for axis in range(1, len(seen[0]))
        )
        outputs.append(TensorSpec(name, "float32", shape))
    return dataclasses.replace(signature, outputs=tuple(outputs))


def _shapes(network: fx.GraphModule, signature: Signature, numbers: Iterable[int]) -> list[list[tuple[int, ...]]]:
    """Return the shapes of a network's results with the free sizes `signature.sizes(number)` for each number."""
    modes = {module: module.training for module in network.modules()}
    device = next((parameter.device for parameter in network.parameters()), None)
    found = []
    with torch.no_grad():
        network.eval()
        for number in numbers:
            rows = 2 + number
            result = network(*zeros_of(signature, rows, number=number, device=device))
            shapes = [tuple(tensor.shape) for tensor in ([result] if isinstance(result, Tensor) else result)]
            if any(shape[:1] != (rows,) for shape in shapes):
                raise ConversionError(
                    f"Expected results with the batch dimension first, but of {rows} samples one has the shape "
                    f"{next(shape for shape in shapes if shape[:1] != (rows,))}",
                    hint="return a row for each sample; averages over a batch belong to the loss",
                )
            found.append(shapes)
    for module, mode in modes.items():
        module.training = mode
    return found


def _size(signature: Signature, name: str, seen: Sequence[int]) -> Size:
    """Return the size, as a function of a free dimension, that was seen at several sizes of the free dimensions."""
    if len(set(seen)) == 1:
        return seen[0]
    for free in signature.free:
        sizes = [signature.sizes(number)[free] for number in range(len(seen))]
        if sizes[0] == sizes[1]:
            continue
        factor = (seen[1] - seen[0]) // (sizes[1] - sizes[0])
        offset = seen[0] - factor * sizes[0]
        if factor > 0 and all(factor * size + offset == got for size, got in zip(sizes, seen, strict=True)):
            return size_of(free, factor, offset)
    return name
