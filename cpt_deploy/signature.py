"""The signature of a model: named input and output tensors with a free batch dimension first. Needs no PyTorch."""

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

BATCH = "N"
"""Name of the batch dimension, the first of every tensor of a signature."""
INPUT_NAME, TOKENS_NAME, OUTPUT_NAME = "image", "input_ids", "logits"
"""Default names of a single input (of real values, of integers) and of a single output."""

AFTER = "_after"
"""Suffix of a state's name as an output: the state after a call."""

Size = int | str
"""Size of one dimension: a number; or, if it is free, its name, or a sum such as `2*height-1` or `past+length`."""

_TERM = re.compile(r"(?P<sign>[+-]?)(?:(?:(?P<factor>\d+)\*)?(?P<name>[A-Za-z_]\w*)|(?P<number>\d+))(?=[+-]|$)")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a signature.

    Attributes:
        name: Unique among inputs and outputs; also its name in the ONNX file.
        dtype: NumPy's name of the dtype: "float32", "int64", ...
        shape: Sizes without the batch dimension. A size of an output gets a new name if it is no sum of multiples of
            free sizes and a number.
        batch: The first dimension, as in an ONNX file that was read: its name if it is free, a number if it is fixed,
            None if the tensor has no dimensions.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...]
    batch: Size | None = BATCH

    @property
    def whole_shape(self) -> tuple[Size, ...]:
        """The sizes with the batch dimension."""
        return self.shape if self.batch is None else (self.batch, *self.shape)


@dataclass(frozen=True, slots=True)
class FreeSize:
    """A free dimension beside the batch.

    Attributes:
        example: The size in the example that the model was captured with.
        least: The minimum size; 0 only where it is a size of states alone, which begin empty.
        most: The maximum size; None if there is none. With states the sum of all free sizes has this maximum, too: the
            past and the present tokens together fill a context.
    """

    example: int
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a model.

    Attributes:
        inputs: In the order of the model's arguments.
        outputs: In the order in which the model returns them.
        states: Pairs (input, output): the output of a call is the input of the next call.
        free: The free dimensions beside the batch, by name.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[tuple[str, str], ...] = ()
    free: Mapping[str, FreeSize] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all inputs and outputs."""
        return tuple(tensor.name for tensor in (*self.inputs, *self.outputs))

    @property
    def joins_rows(self) -> bool:
        """Whether rows of several calls can be computed together: each tensor has the batch dimension first."""
        return bool(self.inputs) and all(tensor.batch == BATCH for tensor in (*self.inputs, *self.outputs))

    def by_call(self) -> "Signature":
        """Return the signature of the same model if its calls are not joined: no dimension is the batch."""
        name = f"{BATCH}_0"

        def renamed(tensor: TensorSpec) -> TensorSpec:
            sizes = [name if size == BATCH else size for size in tensor.whole_shape]
            return replace(tensor, shape=tuple(sizes[1:]), batch=sizes[0] if sizes else None)

        inputs, outputs = (tuple(map(renamed, tensors)) for tensors in (self.inputs, self.outputs))
        free = {name if key == BATCH else key: size for key, size in self.free.items()}
        if any(name in tensor.whole_shape for tensor in inputs):
            free = {name: FreeSize(example=1), **free}
        return replace(self, inputs=inputs, outputs=outputs, free=free)

    @property
    def context(self) -> int | None:
        """The maximum of the sum of all free sizes of a network with states; None if there is none."""
        bounds = [free.most for free in self.free.values() if free.most is not None] if self.states else []
        return min(bounds, default=None)

    def most(self, name: str) -> int | None:
        """Return the maximum size of a free dimension at which all may be at their maximum: its share of a context."""
        free, context = self.free[name], self.context
        return free.most if context is None else max(context // len(self.free), free.least)

    def sizes(self, number: int = 0) -> dict[str, int]:
        """Return sizes of the free dimensions: those of the example for 0, and others for each larger number.

        Where the bounds permit, the others differ from each other, and from the example's by enough that the difference
        remains visible after strides.
        """
        return {
            name: _other_size(replace(free, most=self.most(name)), number, place) if number else free.example
            for place, (name, free) in enumerate(self.free.items())
        }

    def trials(self) -> list[dict[str, int]]:
        """Return free sizes at which two forms of a network are compared.

        The sizes of the example come first, then others; with states also the first call, in which all sizes are at
        their minimum, and one of those after it, in which only the states have other sizes.
        """
        if not self.free:
            return [{}]
        least = {name: free.least for name, free in self.free.items()}
        grown = {name: size for name, size in self.sizes(1).items() if not least[name]}
        return [self.sizes(), self.sizes(1), *([least, least | grown] if self.states else [])]

    def input_shapes(self, sizes: Mapping[str, int] | None = None) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each input without the batch dimension; by default with the sizes of the example."""
        free = self.sizes() if sizes is None else sizes
        return tuple(tuple(size_at(size, free) for size in tensor.shape) for tensor in self.inputs)


def size_at(size: Size, free: Mapping[str, int]) -> int:
    """Return the size of a dimension for given sizes of the free dimensions.

    Raises:
        KeyError: If it does not follow from these.
    """
    factors, offset = factors_of(size)
    return offset + sum(factor * free[name] for name, factor in factors.items())


def size_of(factors: Mapping[str, int], offset: int) -> str:
    """Return a free size in the notation of a signature: "height", "8*height", "2*length-1", "past+length"."""
    terms = [(f"{factor}*" if factor != 1 else "") + name for name, factor in factors.items()]
    return "+".join(terms) + (f"{offset:+d}" if offset else "")


def factors_of(size: Size) -> tuple[dict[str, int], int]:
    """Return the factor of each free dimension in a size, and the number that is added.

    Raises:
        KeyError: If the size is no such sum.
    """
    if isinstance(size, int):
        return {}, size
    factors: dict[str, int] = {}
    offset = place = 0
    while place < len(size) or not size:
        match = _TERM.match(size, place)
        if match is None or (place and not match["sign"]):
            raise KeyError(size)
        sign = -1 if match["sign"] == "-" else 1
        if match["name"]:
            factors[match["name"]] = factors.get(match["name"], 0) + sign * int(match["factor"] or 1)
        else:
            offset += sign * int(match["number"])
        place = match.end()
    return factors, offset


def _other_size(free: FreeSize, number: int, place: int) -> int:
    most, step = sys.maxsize if free.most is None else free.most, number - 1 + place
    far = [(number + 1) * max(free.example, 2) + place, most - step, free.least + step]
    possible = [
        size
        for size in (*far, free.example + 1 + step, free.example - 1 - step)
        if free.least <= size <= most and size != free.example
    ]
    # `torch.export` makes constants of sizes below 2
    return next((size for size in possible if size >= 2), next(iter(possible), free.example))


def to_json(signature: Signature) -> dict[str, Any]:
    """Return a signature as JSON values."""
    return {
        "inputs": [_tensor_to_json(tensor) for tensor in signature.inputs],
        "outputs": [_tensor_to_json(tensor) for tensor in signature.outputs],
        "states": [list(pair) for pair in signature.states],
        "free": {name: asdict(free) for name, free in signature.free.items()},
    }


def from_json(data: Mapping[str, Any]) -> Signature:
    """Rebuild a signature from the result of `to_json`.

    Raises:
        KeyError: If a part is missing.
    """
    inputs, outputs = (
        tuple(
            TensorSpec(tensor["name"], tensor["dtype"], tuple(tensor["shape"]), tensor.get("batch", BATCH))
            for tensor in data[part]
        )
        for part in ("inputs", "outputs")
    )
    states = tuple((before, after) for before, after in data["states"])
    return Signature(inputs, outputs, states, {name: FreeSize(**free) for name, free in data["free"].items()})


def _tensor_to_json(tensor: TensorSpec) -> dict[str, Any]:
    entry = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    return entry if tensor.batch == BATCH else {**entry, "batch": tensor.batch}
