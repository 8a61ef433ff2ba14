"""Run an ONNX network on samples, and measure the shapes of all its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork

Sample = Mapping[str, NDArray[Any]]
"""Values of all inputs of a network, by name."""

_SHAPE = "cpt_shape:"
_ELEMENTS: Mapping[str, int] = dict(TensorProto.DataType.items())


@dataclass(frozen=True)
class Measured:
    """A tensor as it was seen in a run.

    Attributes:
        shape: Its shape.
        is_float: Whether it is float32.
        element: Its element type in ONNX; 0 if it is unknown.
    """

    shape: tuple[int, ...]
    is_float: bool
    element: int = TensorProto.UNDEFINED


def measure_shapes(network: OnnxNetwork, sample: Sample) -> dict[str, Measured]:
    """Return shapes of all tensors of a network in one run; none of sequences and of other values without a shape.

    Args:
        network: The network.
        sample: A sample.

    Raises:
        UsageError: If the sample lacks an input.
        ConversionError: If the network cannot be run on it.
    """
    names = [name for node in network.nodes for name in node.output if name and _may_have_shape(network, name)]
    names += [value.name for value in network.inputs if _may_have_shape(network, value.name)]
    probes = [helper.make_node("Shape", [name], [_SHAPE + name]) for name in names]
    model = network.to_model(probes, [probe.output[0] for probe in probes])
    results = run(model, sample, network, [probe.output[0] for probe in probes])
    shapes = {name: tuple(map(int, results[_SHAPE + name])) for name in names}
    kinds = _element_types(network, names)
    elements = {name: kinds.get(name, TensorProto.UNDEFINED) for name in names}
    return {
        name: Measured(shape, elements[name] == TensorProto.FLOAT, elements[name]) for name, shape in shapes.items()
    }


def element_of(kind: str) -> int:
    """Return the ONNX element type of a type in onnxruntime's words, such as "tensor(int64)"; 0 if it is no tensor."""
    if not kind.startswith("tensor("):
        return 0
    # onnxruntime writes ONNX's names in small letters
    return _ELEMENTS.get(kind.removeprefix("tensor(").removesuffix(")").upper(), 0)


def _may_have_shape(network: OnnxNetwork, name: str) -> bool:
    kind = network.types.get(name)
    return kind is None or kind.WhichOneof("value") in (None, "tensor_type")


def _element_types(network: OnnxNetwork, names: Sequence[str]) -> dict[str, int]:
    """Return element types, those that onnx does not know from onnxruntime."""
    known = {name: network.types[name].tensor_type.elem_type for name in names if name in network.types}
    unknown = [name for name in names if not known.get(name)]
    if unknown:
        model = network.to_model((), [name for name in unknown if name not in network.output_names])
        for output in open_session(model.SerializeToString(), optimize=False).get_outputs():
            known[output.name] = known.get(output.name) or element_of(output.type)
    return known


def run(
    model: onnx.ModelProto, sample: Sample, network: OnnxNetwork, outputs: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run a model once; see `Runner`."""
    return Runner(model, network).run(sample, outputs)


class Runner:
    """Runs a network, perhaps with further outputs.

    Args:
        model: The network as a model.
        network: The network, for messages.
        optimize: Whether onnxruntime may fuse operators.

    Raises:
        ConversionError: If onnxruntime cannot load it.
    """

    def __init__(self, model: onnx.ModelProto | bytes, network: OnnxNetwork, *, optimize: bool = True) -> None:
        content = model if isinstance(model, bytes) else model.SerializeToString()
        self.session = open_session(content, where=network.name or None, threads=None, optimize=optimize)
        self.network = network

    def run(self, sample: Sample, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Return outputs by name, all by default.

        Raises:
            UsageError: If the sample has not the inputs of the network.
            ConversionError: If it fails.
        """
        wanted = {value.name for value in self.network.inputs}
        if sample.keys() != wanted:
            raise UsageError(f"Expected samples with the inputs {', '.join(wanted)}, but got {', '.join(sample)}")
        names = list(outputs) if outputs is not None else [output.name for output in self.session.get_outputs()]
        try:
            results = self.session.run(names, dict(sample)) if names else []
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).strip().partition("\n")[0]
            shapes = ", ".join(f"{name} {x.dtype} {x.shape}" for name, x in sample.items())
            raise ConversionError(f"Expected {self.network.name} to run on {shapes}, but got: {reason}") from error
        return dict(zip(names, results, strict=True))
