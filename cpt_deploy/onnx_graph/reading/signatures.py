"""The signature of an ONNX network: names, types and shapes of its inputs and outputs."""

import re
from collections.abc import Mapping, Set

import numpy as np
import onnx
from onnx import helper

from cpt_deploy.errors import ConversionError
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.running import Measured, Sample
from cpt_deploy.signature import BATCH, FreeSize, Signature, Size, TensorSpec

_NAME = re.compile(r"[A-Za-z_]\w*")


def signature_of(network: OnnxNetwork, sample: Sample, measured: Mapping[str, Measured]) -> Signature:
    """Return the signature of a network; the free sizes of a sample are the example.

    The first dimension of a tensor is its batch dimension: N if it is free, otherwise a number. Outputs whose shape the
    file does not declare, or declares otherwise than it is, have free sizes.

    Args:
        network: The network.
        sample: A sample.
        measured: The tensors as they were seen in a run on it.

    Raises:
        ConversionError: If an input or output is no tensor of numbers.
    """
    first = [name for value in network.inputs if (name := _declared(value)[:1])]
    batches = {name for (name,) in first if isinstance(name, str)}
    batch = next((name for (name,) in first if isinstance(name, str)), "")
    inputs = tuple(_input(value, batch) for value in network.inputs)
    rows = {len(sample[value.name]) for value in network.inputs if _declared(value)[:1] == [batch]}
    outputs = tuple(_spec(value, _seen(value, measured, batch, rows), batch) for value in network.outputs)
    free: dict[str, FreeSize] = {}
    for tensor in inputs:
        sizes = sample[tensor.name].shape
        for place, size in enumerate(tensor.whole_shape):
            if isinstance(size, str) and (place or size != BATCH):
                free.setdefault(size, FreeSize(int(sizes[place])))
    assert batch in batches or not batches
    return Signature(inputs, outputs, (), free)


def declared_inputs(network: OnnxNetwork) -> tuple[TensorSpec, ...]:
    """Return the inputs of a network as its file declares them.

    Raises:
        ConversionError: If one is no tensor of numbers.
    """
    return tuple(_input(value, "") for value in network.inputs)


def _seen(value: onnx.ValueInfoProto, measured: Mapping[str, Measured], batch: str, rows: Set[int]) -> list[Size]:
    """Return the sizes of an output: as declared, if it had them in a run; otherwise free."""
    declared = _declared(value)
    if value.name not in measured:
        return declared
    made = measured[value.name].shape
    if value.type.tensor_type.HasField("shape") and len(declared) == len(made):
        fits = [not isinstance(size, int) or size == got for size, got in zip(declared, made, strict=True)]
        return [
            size if fit else _free(value, axis) for axis, (size, fit) in enumerate(zip(declared, fits, strict=True))
        ]
    return [batch if not axis and size in rows else _free(value, axis) for axis, size in enumerate(made)]


def _free(value: onnx.ValueInfoProto, axis: int) -> str:
    """Return a name for a free size."""
    name = f"{re.sub(r'[^A-Za-z0-9_]', '_', value.name)}_{axis}"
    return name if _NAME.fullmatch(name) else f"_{name}"


def _declared(value: onnx.ValueInfoProto) -> list[Size]:
    """Return the sizes of an input or output; free ones have the file's names, or new ones."""
    sizes: list[Size] = []
    for axis, size in enumerate(value.type.tensor_type.shape.dim):
        if size.HasField("dim_value") and size.dim_value >= 0:
            sizes.append(int(size.dim_value))
        else:
            named = size.HasField("dim_param") and _NAME.fullmatch(size.dim_param)
            sizes.append(size.dim_param if named else _free(value, axis))
    return sizes


def _input(value: onnx.ValueInfoProto, batch: str) -> TensorSpec:
    spec = _spec(value, _declared(value), batch)
    if not value.type.tensor_type.HasField("shape"):
        raise ConversionError(
            f"Expected inputs with a stated number of dimensions, but {value.name!r} has none",
            hint="write its shape into the file; sizes may be free",
        )
    return spec


def _spec(value: onnx.ValueInfoProto, sizes: list[Size], batch: str) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        raise ConversionError(f"Expected tensors as inputs and outputs, but {value.name!r} is none")
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if kind.kind not in "biuf":
        raise ConversionError(f"Expected numbers as inputs and outputs, but {value.name!r} holds {kind}")
    renamed = [BATCH if size == batch else size for size in sizes]
    return TensorSpec(value.name, kind.name, tuple(renamed[1:]), renamed[0] if renamed else None)
