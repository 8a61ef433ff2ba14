"""An ONNX file of any tool: its graph, the graph that onnxruntime makes of it, and inputs to run it on."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from cpt_deploy.bundle.runtime.operators import optimize
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.onnx_graph.reading.loading import parsed, without_functions
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of

Arrays = dict[str, npt.NDArray[Any]]

_SIZES = (16, 1, 2, 4, 8, 32, 64, 96, 128, 160, 224, 256, 512)
"""Sizes of free dimensions to try, until onnxruntime runs the file."""
_MOST_VALUES = 2**26
"""Values of an input that are tried."""
_ROWS = 8
"""Rows of a call, where the first dimension is free."""


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An ONNX file.

    Args:
        path: The file.
        model: Its content with external data inside and a name for each operator.
        content: The same, serialized.
        size_bytes: Size of the file with external data.
    """

    path: Path
    model: onnx.ModelProto
    content: bytes
    size_bytes: int

    @cached_property
    def graph(self) -> OnnxNetwork:
        """The graph of the file, with functions inlined."""
        model = onnx.shape_inference.infer_shapes(without_functions(self.model))
        return OnnxNetwork.from_model(model, name=self.path.name)

    def optimized(self, *, exact_sums: bool | None = None) -> OnnxNetwork:
        """Return the graph that onnxruntime executes on this processor.

        Args:
            exact_sums: As for `optimize`: `None` is as this project serves the file.
        """
        return OnnxNetwork.from_model(optimize(self.content, exact_sums=exact_sums), name=self.path.name)

    @property
    def sha256(self) -> str:
        """Digest of the file itself, hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def free_batch(self) -> bool:
        """Whether the first dimension of each input is free; numbers, inputs without dimensions, have none."""
        return all(shape[0] is None for shape in map(self.graph.shape, self.input_names) if shape)

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs."""
        return [value.name for value in self.graph.inputs]


def read_file(path: Path) -> OnnxFile:
    """Read an ONNX file with its external data.

    Raises:
        DataError: If it is missing, damaged or larger than 2 GB.
        BundleError: If onnxruntime cannot load it.
    """
    model = parsed(path)
    if not model.graph.output:
        raise DataError(f"Expected an ONNX model in {path}, but it has no outputs")
    size = model.ByteSize()
    taken = {node.name for node in model.graph.node}
    fresh = (name for i in itertools.count() if (name := f"unnamed_{i}") not in taken)
    for node in model.graph.node:
        node.name = node.name or next(fresh)
    content = model.SerializeToString()
    open_session(content, where=str(path), optimize=False)
    return OnnxFile(path, model, content, size)


def tensors_of(names: Iterable[str], values: Iterable[Any]) -> Arrays:
    """Return the results of a run that are tensors, by name; sequences and maps are left out."""
    return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def with_outputs(network: OnnxNetwork) -> bytes:
    """Return a graph with every tensor between its operators as an output."""
    names = dict.fromkeys(name for node in network.nodes for name in node.output if name)
    model = network.to_model((), [name for name in names if name not in network.output_names])
    return bytes(model.SerializeToString())


def example_inputs(file: OnnxFile, rows: int = 2, seed: int = 0) -> Arrays:
    """Return random inputs that onnxruntime runs the file on; quantized inputs use the whole range of their quantizer.

    Args:
        file: The file.
        rows: Size of free first dimensions.
        seed: Seed of the values.

    Raises:
        UsageError: If inputs are no tensors, or none of the tried sizes of free dimensions fits the file.
    """
    session, reason = open_session(file.content, where=str(file.path), optimize=False), "no sizes"
    for first, size in itertools.product(dict.fromkeys((rows, 1)), _SIZES):
        if any(math.prod(_shape(file.graph, value, first, size)) > _MOST_VALUES for value in file.graph.inputs):
            reason = reason if reason != "no sizes" else f"inputs of more than {_MOST_VALUES:,} values"
            continue
        inputs = {value.name: _random(file.graph, value, first, size, seed) for value in file.graph.inputs}
        try:
            session.run(None, inputs)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).strip().partition("\n")[0]
            continue
        return inputs
    raise UsageError(
        f"Expected {file.path.name} to run on random inputs, but got: {reason}", hint="give inputs: --data inputs.npz"
    )


def _shape(network: OnnxNetwork, value: onnx.ValueInfoProto, rows: int, size: int) -> list[int]:
    known = network.shape(value.name) or ()
    return [(size if place else rows) if fixed is None else fixed for place, fixed in enumerate(known)]


def _random(network: OnnxNetwork, value: onnx.ValueInfoProto, rows: int, size: int, seed: int) -> npt.NDArray[Any]:
    if value.type.WhichOneof("value") != "tensor_type":
        raise UsageError(
            f"Expected inputs that are tensors, but {value.name!r} of {network.name} is a "
            f"{str(value.type.WhichOneof('value')).removesuffix('_type')}"
        )
    shape = _shape(network, value, rows, size)
    random, kind = np.random.default_rng(seed), value.type.tensor_type.elem_type
    if kind == TensorProto.STRING:
        return np.full(shape, "a", object)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind == "b":
        return np.asarray(random.integers(0, 2, shape), bool)
    if dtype.kind in "iu":
        most = _index_bound(network, value.name) or (127 if dtype.itemsize == 1 else 2)
        return np.asarray(random.integers(0, most, shape), dtype)
    least, greatest = _quantized_range(network, value.name)
    middle, spread = (least + greatest) / 2, (greatest - least) / 5
    return np.asarray(middle + spread * random.standard_normal(shape), dtype)


def _index_bound(network: OnnxNetwork, name: str) -> int | None:
    """Return the number of rows of a table that an input is an index of."""
    for reader in (network.nodes[i] for i in network.readers.get(name, ())):
        if reader.op_type == "Gather" and reader.input[1] == name:
            shape = network.shape(reader.input[0])
            return shape[attributes_of(reader).get("axis", 0)] if shape else None
    return None


def _quantized_range(network: OnnxNetwork, name: str) -> tuple[float, float]:
    """Return the range of the quantizer that reads an input; -2.5 to 2.5 if none does."""
    for reader in (network.nodes[i] for i in network.readers.get(name, ())):
        if reader.op_type != "QuantizeLinear":
            continue
        scale = network.array(reader.input[1])
        zero = network.array(reader.input[2]) if len(reader.input) > 2 else np.zeros((), np.uint8)
        if scale is not None and zero is not None and scale.size == 1 and zero.dtype.kind in "iu":
            limits, step, zero_point = np.iinfo(zero.dtype), float(scale.reshape(())), int(zero.reshape(()))
            return (limits.min - zero_point) * step, (limits.max - zero_point) * step
    return -2.5, 2.5


def batches(file: OnnxFile, arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[Arrays]:
    """Yield the calls that rows of inputs make: a few rows each, or as many as a file with a fixed size takes.

    Each call takes numbers, inputs without dimensions, as they are.
    """
    rows = {name: array for name, array in arrays.items() if array.ndim}
    if not rows:
        yield dict(arrays)
        return
    sizes = {(file.graph.shape(name) or (None,))[0] for name in rows} - {None}
    length = min(len(array) for array in rows.values())
    step = _ROWS if not sizes else max(size for size in sizes if size is not None)
    for start in range(0, length - (length % step if sizes else 0), step):
        yield {name: array[start : start + step] if array.ndim else array for name, array in arrays.items()}
