"""Read the constants of an ONNX file's quantizers and layers, by the names of its quantized tensors."""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.runtime.operators import require_onnx
from cpt_deploy.errors import BundleError
from cpt_deploy.onnx_graph.outputs import scans

_MOVERS = frozenset({"Pad", "SpaceToDepth"})
_FOLDABLE = frozenset({"BitShift", "Cast", "Constant", "Identity", "Mul", "Reshape", "Unsqueeze"})

Array = npt.NDArray[Any]


class UnexpectedStructureError(Exception):
    """The structure of the file differs from the integer graph, so a constant has no counterpart to compare."""


class ConstantGraph:
    """An ONNX file, accessed by the names of its quantized tensors.

    Args:
        graph: The ONNX graph.
        tensors: Names of the integer graph's tensors; other quantized tensors are rearrangements of these.
    """

    def __init__(self, graph: Any, tensors: Collection[str] = ()) -> None:
        self._graph, self._tensors = graph, frozenset(tensors)
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._initializers = {initializer.name: initializer for initializer in graph.initializer}
        self._readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    @classmethod
    def of_file(cls, model: bytes, tensors: Collection[str] = ()) -> "ConstantGraph":
        """Return the graph of a serialized model.

        Raises:
            BundleError: If the bytes are no ONNX model.
            MissingExtraError: If `onnx` is not installed.
        """
        onnx = require_onnx()
        try:
            return cls(onnx.load_from_string(model).graph, tensors)
        except Exception as error:  # protobuf's DecodeError, or any other error of invalid bytes
            raise BundleError(f"Expected an ONNX model, but got: {error}") from error

    def scan(self, name: str) -> tuple[Any, "ConstantGraph"]:
        """Return the Scan of a name, and its body.

        Raises:
            UnexpectedStructureError: If there is none.
        """
        for node, body in scans(self._graph):
            if node.name == name:
                return node, ConstantGraph(body)
        raise UnexpectedStructureError(f"expected a Scan {name!r}, but there is none")

    def readers(self, name: str) -> list[Any]:
        """Return the nodes that read a tensor."""
        return self._readers.get(name, [])

    def constant(self, name: str) -> Array:
        """Return a constant; it is computed if it is cast or shifted at load, as packed weights are.

        Raises:
            UnexpectedStructureError: If it is no constant.
        """
        onnx = require_onnx()
        if name in self._initializers:
            value: Array = np.asarray(onnx.numpy_helper.to_array(self._initializers[name]))
            return value
        node = self._made_by.get(name)
        if node is None or node.op_type not in _FOLDABLE:
            raise UnexpectedStructureError(f"expected {name!r} to be a constant")
        from onnx.reference import ReferenceEvaluator

        feeds = {entry: self.constant(entry) for entry in node.input if entry}
        computed: Array = np.asarray(ReferenceEvaluator(node).run(None, feeds)[0])
        return computed

    def initializer(self, name: str) -> Array | None:
        """Return the initializer of a name, or None."""
        return self.constant(name) if name in self._initializers else None

    def node(self, name: str) -> Any:
        """Return the node that outputs a tensor.

        Raises:
            UnexpectedStructureError: If there is none.
        """
        node = self._made_by.get(name)
        if node is None:
            raise UnexpectedStructureError(f"expected a tensor {name!r}, but there is none")
        return node

    def quantizer(self, name: str) -> tuple[Any, tuple[int, int] | None]:
        """Return the QuantizeLinear of a quantized tensor, and the bounds of the Clip after it, if there is one.

        Raises:
            UnexpectedStructureError: If another node outputs the tensor.
        """
        node, bounds = self.node(name), None
        if node.op_type == "Clip":
            low, high = (int(self.constant(entry)) for entry in node.input[1:3])
            node, bounds = self.node(node.input[0]), (low, high)
        if node.op_type != "QuantizeLinear":
            raise UnexpectedStructureError(f"expected {name!r} to be made by QuantizeLinear, but got {node.op_type}")
        return node, bounds

    def producer(self, name: str) -> Any:
        """Return the operator whose result a quantized tensor holds.

        Raises:
            UnexpectedStructureError: If there is none.
        """
        node = self.node(self.quantizer(name)[0].input[0])
        # a ReLU between a layer and its quantizer is part of the layer; one that reads a dequantized tensor is separate
        before = self._made_by.get(node.input[0]) if node.op_type == "Relu" else None
        return node if before is None or before.op_type == "DequantizeLinear" else before

    def dequantized(self, name: str) -> tuple[Array, Array, Array]:
        """Return integers, scales and zero points (zeros if omitted) of a dequantized constant.

        Raises:
            UnexpectedStructureError: If it is not dequantized, or no constant.
        """
        node = self.node(name)
        if node.op_type != "DequantizeLinear":
            raise UnexpectedStructureError(f"expected {name!r} to be dequantized, but it is made by {node.op_type}")
        codes, scales = self.constant(node.input[0]), self.constant(node.input[1])
        zeros = self.constant(node.input[2]) if len(node.input) > 2 else np.zeros(scales.shape, np.int8)
        return codes, scales, zeros

    def source(self, name: str) -> str:
        """Return the quantized tensor from which real values are dequantized, before any rearrangement."""
        node = self._made_by.get(name)
        if node is not None and node.op_type == "Identity":
            return self.source(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return name
        mover = self.mover(name)
        return str(node.input[0] if mover is None else mover.input[0])

    def mover(self, name: str) -> Any:
        """Return the node that rearranges integers before they are dequantized to these real values, or None."""
        node = self._made_by.get(name)
        before = None if node is None else self._made_by.get(node.input[0])
        moved = before is not None and before.op_type in _MOVERS and before.output[0] not in self._tensors
        return before if moved else None

    def parameters(self, node: Any) -> Array:
        """Return the parameters of a function: the bounds of a Clip, or alpha and beta."""
        if node.op_type == "Clip":
            return np.array([self.constant(entry) for entry in node.input[1:3]], dtype=np.float32)
        found = attributes(node)
        return np.array([found[key] for key in ("alpha", "beta") if key in found], dtype=np.float32)


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    onnx = require_onnx()
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def unfolded(codes: Array, block: int) -> Array:
    """Undo SpaceToDepth in weights: (O, (row, column, C), H, W) → (O, C, H·block, W·block)."""
    out_channels, channels, height, width = codes.shape
    blocks = codes.reshape(out_channels, block, block, channels // block**2, height, width)
    return blocks.transpose(0, 3, 4, 1, 5, 2).reshape(out_channels, -1, height * block, width * block)


def embedded(codes: Array, shape: tuple[int, ...], pads: tuple[int, ...]) -> Array:
    """Pad a kernel of stride 2 to whole blocks of pixels; odd padding starts in the middle of a block."""
    around = [(pads[axis] % 2, max(0, shape[2 + axis] - codes.shape[2 + axis] - pads[axis] % 2)) for axis in (0, 1)]
    return np.pad(codes, [(0, 0), (0, 0), *around])
