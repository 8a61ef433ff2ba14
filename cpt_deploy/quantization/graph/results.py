"""Flatten a network's result (tuples, lists, dictionaries, dataclasses) to a list of tensors, and rebuild it."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.quantization.graph.signature import zeros_of
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.signature import AFTER, OUTPUT_NAME, Signature, Size, TensorSpec, size_at, size_of


class _Leaf(Enum):
    TENSOR = "placeholder of a tensor among the leaves of a structure"


_CONSTANTS = (bool, int, float, str, type(None))


def _is_tensor(leaf: Any) -> bool:
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

    def tensors(self, result: Any) -> list[Any]:
        """Return the tensors of a result, or the nodes or proxies that represent them.

        Raises:
            ValueError: If it has another structure.
        """
        leaves, spec = _pytree.tree_flatten(result)
        found = [_Leaf.TENSOR if _is_tensor(leaf) else leaf for leaf in leaves]
        if (spec, found) != (self._spec, self._leaves):
            raise ValueError("its result has another structure than when the network runs")
        return [leaf for leaf in leaves if _is_tensor(leaf)]

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


def complete_signature(
    network: fx.GraphModule, signature: Signature, names: Sequence[str], states: Sequence[tuple[str, str]] = ()
) -> Signature:
    """Return a signature with the outputs of a network, found by running it on zeros in evaluation mode.

    Args:
        network: Network that takes the tensors of the signature, and returns one tensor or a tuple of them.
        signature: The inputs.
        names: The network's own names of the outputs. One that is also an input's gets the suffix "_output"; a state is
            called by its input with the suffix "_after", and a single output beside states "logits".
        states: Pairs (input, output) of states, by the network's own names.

    Raises:
        UsageError: If an output of `states` is missing, or its shape is not that of the next call's input.
        ConversionError: If the first dimension of a result is not the batch.
    """
    trials = _trials(signature)
    shapes = [_shapes(network, signature, sizes, 2 + number) for number, sizes in enumerate(trials)]
    outputs = []
    for name, seen in zip(_output_names(signature, names, states), zip(*shapes, strict=True), strict=True):
        shape = tuple(
            _size(trials, f"{name}_size_{axis}", [sizes[axis] for sizes in seen]) for axis in range(1, len(seen[0]))
        )
        outputs.append(TensorSpec(name, "float32", shape))
    complete = dataclasses.replace(signature, outputs=tuple(outputs))
    _check_states(complete)
    return complete


def _output_names(signature: Signature, names: Sequence[str], states: Sequence[tuple[str, str]]) -> list[str]:
    after = {output: before + AFTER for before, output in states}
    unknown = [output for output in after if output not in names]
    if unknown:
        raise UsageError(f"Expected states among the results {', '.join(names)}, but got {unknown[0]!r}")
    others = [name for name in names if name not in after]
    if states and len(others) == 1:
        after[others[0]] = OUTPUT_NAME
    taken = {tensor.name for tensor in signature.inputs}
    named = [after.get(name, name) for name in names]
    return [f"{name}_output" if name in taken else name for name in named]


def _check_states(signature: Signature) -> None:
    """Check that the output of each state has the sizes of its input, except for free ones."""
    tensors = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
    for before, after in signature.states:
        given, made = tensors[before].shape, tensors[after].shape
        fits = len(given) == len(made) and all(
            made[axis] == size if isinstance(size, int) else True for axis, size in enumerate(given)
        )
        if not fits:
            raise UsageError(
                f"Expected states whose output can be the next call's input, but {before!r} has the shape "
                f"(N, {', '.join(map(str, given))}) before and (N, {', '.join(map(str, made))}) after a call",
                hint="sizes that change have to be free: dynamic_shapes",
            )


def _trials(signature: Signature) -> list[dict[str, int]]:
    """Return sizes of the free dimensions that determine sums of multiples of them, and others to check these."""
    if not signature.free:
        return [{}]
    base, other = signature.sizes(1), signature.sizes(2)
    return [base, *(base | {name: other[name]} for name in base), signature.sizes(0), signature.sizes(3)]


def _shapes(
    network: fx.GraphModule, signature: Signature, sizes: Mapping[str, int], rows: int
) -> list[tuple[int, ...]]:
    """Return the shapes of a network's results for given free sizes."""
    device = next((parameter.device for parameter in network.parameters()), None)
    with torch.no_grad(), in_evaluation(network):
        result = network(*zeros_of(signature, rows, sizes, device=device))
    tensors = [result] if isinstance(result, Tensor) else result
    check_batch_first(tensors, rows)
    return [tuple(tensor.shape) for tensor in tensors]


def check_batch_first(tensors: Sequence[Tensor], rows: int) -> None:
    """Check that each result of a batch has a row for each sample.

    Raises:
        ConversionError: Otherwise.
    """
    other = next((tuple(tensor.shape) for tensor in tensors if tensor.shape[:1] != (rows,)), None)
    if other is not None:
        raise ConversionError(
            f"Expected results with the batch dimension first, but of {rows} sample{'s' * (rows > 1)} one has the "
            f"shape {other}",
            hint="return a row for each sample, of a single one, too: squeeze(1) leaves the batch as it is, and "
            "averages over a batch belong to the loss",
        )


def _size(trials: Sequence[Mapping[str, int]], name: str, seen: Sequence[int]) -> Size:
    """Return the size, as a sum of multiples of free sizes, that was seen in the trials; or else a new name."""
    if len(set(seen)) == 1:
        return seen[0]
    base = trials[0]
    factors: dict[str, int] = {}
    for free, trial, size in zip(base, trials[1:], seen[1:], strict=False):
        if size != seen[0]:
            factors[free] = (size - seen[0]) // (trial[free] - base[free])
    if not factors or min(factors.values()) < 0:
        return name
    found: Size = size_of(factors, seen[0] - size_at(size_of(factors, 0), base))
    return found if all(size_at(found, trial) == got for trial, got in zip(trials, seen, strict=True)) else name
