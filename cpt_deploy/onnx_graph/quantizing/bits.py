"""Which layers and tensors of an ONNX network have how many bits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from cpt_deploy.errors import UsageError
from cpt_deploy.onnx_graph.finding.choosing import Choice
from cpt_deploy.onnx_graph.quantizing.precision import BITS, Precision
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.quantization.numerics.affine import affine_parameters, symmetric_parameters, unsigned_quant_max


@dataclass(frozen=True)
class Bits:
    """The bits of each layer and each tensor.

    Attributes:
        precision: What was asked for.
        layers: Bits of each layer's weights, by its name.
        tensors: Bits of the tensors that have fewer than 8.
    """

    precision: Precision
    layers: Mapping[str, int]
    tensors: Mapping[str, int]

    def quant_max(self, name: str) -> int:
        """Return the number of quantized values of a tensor minus 1."""
        return unsigned_quant_max(self.tensors.get(name, BITS))

    def parameters(self, name: str, bounds: tuple[float, float]) -> tuple[float, int]:
        """Return scale and zero point of a tensor of a range."""
        low, high = (torch.tensor(bound, dtype=torch.float32) for bound in bounds)
        quant_max = torch.tensor(float(self.quant_max(name)))
        if self.precision.symmetric:
            return float(symmetric_parameters(low, high, quant_max)[0]), 0
        scale, zero_point = affine_parameters(low, high, quant_max)
        return float(scale), int(zero_point)


def layer_name(network: OnnxNetwork, nodes: Iterable[int]) -> str:
    """Return the name of a layer: that of its computing operator, or of what this computes."""
    node = network.nodes[next(iter(nodes))]
    return str(node.name or node.output[0])


def bits_of(network: OnnxNetwork, choice: Choice, precision: Precision) -> Bits:
    """Return the bits of each layer and each tensor.

    Raises:
        UsageError: If bits are given for layers that the network does not have.
    """
    layers = [operation for operation in choice.operations if operation.has_weights]
    names = [layer_name(network, operation.nodes) for operation in layers]
    if isinstance(precision.weights, int):
        weights = dict.fromkeys(names, precision.weights) | dict.fromkeys((*names[:1], *names[-1:]), BITS)
    else:
        if unknown := precision.weights.keys() - {*names}:
            raise UsageError(f"Expected bits of layers of the network, {', '.join(names)}, but got {min(unknown)!r}")
        weights = dict.fromkeys(names, BITS) | {**precision.weights}
    tensors: dict[str, int] = {}
    if precision.activations < BITS:
        inside = {id(operation) for operation in layers[1:-1]}
        reads = [(name, id(operation) in inside) for operation in choice.operations for name in operation.inputs]
        others = {name for name, is_inside in reads if not is_inside} | network.output_names
        others |= {name for i, node in enumerate(network.nodes) if i not in choice.nodes for name in node.input}
        kept = {operation.output for operation in choice.operations if operation.kind == "movement"}
        tensors = {name: precision.activations for name, _ in reads if name not in others | kept}
    return Bits(precision, weights, tensors)
