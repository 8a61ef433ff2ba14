"""What surrounds an operator of a file: the quantizers and dequantizers of its inputs and of its result."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of

_ADDED = re.compile(r"(_token_\d+|/duplicated|_nchwc)+$")
"""Ends of names that onnxruntime adds where it writes an operator again."""

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVING = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
_FUSED_FLOAT = re.compile(r"^(Nhwc)?(Fused)?(?=[A-Z])")


def plain_name(name: str) -> str:
    """Return a name as the file has it."""
    return _ADDED.sub("", name)


@dataclass(frozen=True)
class Quantizer:
    """A QuantizeLinear or DequantizeLinear of a file.

    Args:
        node: The operator.
        network: The graph of the file.
    """

    node: onnx.NodeProto
    network: OnnxNetwork

    @property
    def scale(self) -> npt.NDArray[np.float32] | None:
        """Its scale, if constant."""
        return self.network.array(self.node.input[1])

    @property
    def zero(self) -> npt.NDArray[np.generic] | None:
        """Its zero point, if given and constant."""
        return self.network.array(self.node.input[2]) if self.has_zero else None

    @property
    def has_zero(self) -> bool:
        """Whether it states a zero point."""
        return len(self.node.input) > 2 and bool(self.node.input[2])

    @property
    def codes(self) -> npt.NDArray[np.generic] | None:
        """The constant integers that it dequantizes, if they are constant."""
        return self.network.array(self.node.input[0])

    @property
    def kind(self) -> int:
        """The ONNX type of its integers; 0 if unknown."""
        places = [
            *self.node.input[2:3],
            self.node.output[0] if self.node.op_type == "QuantizeLinear" else self.node.input[0],
        ]
        for name in places:
            if name in self.network.constants:
                return int(self.network.constants[name].data_type)
            if name in self.network.types:
                return int(self.network.types[name].tensor_type.elem_type)
        return int(TensorProto.UINT8) if self.node.op_type == "QuantizeLinear" else 0

    @property
    def axis(self) -> int:
        """Its axis."""
        return int(attributes_of(self.node).get("axis", 1))

    @property
    def constant(self) -> bool:
        """Whether it dequantizes constants, also if they are quantized, clipped or cast first."""
        name = self.node.input[0]
        while (place := self.network.producers.get(name)) is not None:
            producer = self.network.nodes[place]
            if producer.op_type not in {"Cast", "Clip", "Identity", "QuantizeLinear"}:
                return False
            name = producer.input[0]
        return name in self.network.constants


class Around:
    """Looks at the surroundings of operators, in a file and in the graph that onnxruntime makes of it.

    Args:
        network: The graph of the file.
        optimized: The graph that onnxruntime executes.
    """

    def __init__(self, network: OnnxNetwork, optimized: OnnxNetwork) -> None:
        self.network = network
        self._left: dict[str, list[onnx.NodeProto]] = {}
        for node in optimized.nodes:
            for name in {plain_name(node.name), *map(plain_name, node.output)}:
                self._left.setdefault(name, []).append(node)

    def stays_float(self, node: onnx.NodeProto) -> bool:
        """Return whether onnxruntime computes an operator of the file in float, alone or with an activation."""
        names = {node.name, *node.output}
        following = self.readers(node.output[0])
        while node.op_type in LAYERS and len(following) == 1 and not names & self._left.keys():
            names |= {following[0].name, *following[0].output}  # it may have absorbed an activation function
            following = self.readers(following[0].output[0])
        return any(_FUSED_FLOAT.sub("", left.op_type) == node.op_type for n in names for left in self._left.get(n, ()))

    def dequantizer(self, name: str) -> Quantizer | None:
        """Return the dequantizer of a tensor, also if only moved after it."""
        while (node := self.producer(name)) is not None and node.op_type in _MOVING:
            name = node.input[0]
        return Quantizer(node, self.network) if node is not None and node.op_type == "DequantizeLinear" else None

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the operator that computes a tensor."""
        place = self.network.producers.get(name)
        return None if place is None else self.network.nodes[place]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the operators that read a tensor."""
        return [self.network.nodes[i] for i in self.network.readers.get(name, ())]

    def quantizer(self, name: str) -> Quantizer | None:
        """Return the quantizer that reads a tensor, if there is one."""
        return next(
            (Quantizer(node, self.network) for node in self.readers(name) if node.op_type == "QuantizeLinear"), None
        )

    def between(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], Quantizer | None]:
        """Return the activation functions between an operator and its quantizer, and that quantizer."""
        passed: list[onnx.NodeProto] = []
        name = node.output[0]
        while len(passed) < 4:
            found = self.quantizer(name)
            if found is not None:
                return passed, found
            following = self.readers(name)
            if len(following) != 1 or following[0].op_type not in {"Clip", "Relu", "Identity"}:
                break
            passed.append(following[0])
            name = following[0].output[0]
        return passed, None

    def of_type(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        """Yield the operators of some types."""
        return (node for node in self.network.nodes if node.op_type in kinds)

    def quantizers(self) -> list[Quantizer]:
        """Return the quantizers and dequantizers of activations."""
        found = (Quantizer(node, self.network) for node in self.of_type("QuantizeLinear", "DequantizeLinear"))
        return [each for each in found if not each.constant]
