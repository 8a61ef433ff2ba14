"""The signature of a model: named input and output tensors with a free batch dimension first. Needs no PyTorch."""

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

BATCH = "N"
"""Name of the batch dimension, the first of every tensor of a signature."""
INPUT_NAME, TOKENS_NAME, OUTPUT_NAME = "image", "input_ids", "logits"
"""Default names of a single input (of real values, of integers) and of a single output."""

Size = int | str
"""Size of one dimension: a number; or, if it is free, its name or `factor*name+offset`."""

_FREE = re.compile(r"(?:(?P<factor>\d+)\*)?(?P<name>[A-Za-z_]\w*)(?P<offset>[+-]\d+)?")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a signature.

    Attributes:
        name: Unique among inputs and outputs; also its name in the ONNX file.
        dtype: NumPy's name of the dtype: "float32", "int64", ...
        shape: Sizes without the batch dimension. A size of an output gets a new name if it depends on free sizes in
            another way than `factor*name+offset`.
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
        least: The minimum size.
        most: The maximum size; None if there is none.
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

    def sizes(self, number: int = 0) -> dict[str, int]:
        """Return sizes of the free dimensions: those of the example for 0, and others for each larger number.

        Where the bounds permit, the others differ from each other, and from the example's by enough that the difference
        remains visible after strides.
        """
        return {
            name: _other_size(free, number, place) if number else free.example
            for place, (name, free) in enumerate(self.free.items())
        }

    def input_shapes(self, number: int = 0) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each input without the batch dimension, with the free sizes of `sizes(number)`."""
        sizes = self.sizes(number)
        return tuple(tuple(size_at(size, sizes) for size in tensor.shape) for tensor in self.inputs)


def size_at(size: Size, free: Mapping[str, int]) -> int:
    """Return the size of a dimension for given sizes of the free dimensions.

    Raises:
        KeyError: If it does not follow from these.
    """
    if isinstance(size, int):
        return size
    match = _FREE.fullmatch(size)
    if match is None:
        raise KeyError(size)
    return int(match["factor"] or 1) * free[match["name"]] + int(match["offset"] or 0)


def size_of(name: str, factor: int, offset: int) -> str:
    """Return a free size in the notation of a signature: "height", "8*height", "2*length-1"."""
    return (f"{factor}*" if factor != 1 else "") + name + (f"{offset:+d}" if offset else "")


def free_name(size: Size) -> str | None:
    """Return the name of the free dimension that determines a size; None for a number, or if there is none."""
    match = None if isinstance(size, int) else _FREE.fullmatch(size)
    return None if match is None else match["name"]


def _other_size(free: FreeSize, number: int, place: int) -> int:
    most, step = free.most or sys.maxsize, number - 1 + place
    far = [(number + 1) * free.example + place, most - step, free.least + step]
    for size in (*far, free.example + 1 + step, free.example - 1 - step):
        if free.least <= size <= most and size != free.example:
            return size
    return free.example


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
