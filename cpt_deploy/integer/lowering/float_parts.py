"""Lower the float parts of a trained model to operations of a frozen graph."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.float_calls import encode, float_call
from cpt_deploy.integer.lowering.float_forms import CEILED, average_with_factors, by_own_statistics, needs_factors
from cpt_deploy.integer.operations import Constant, Embed, Float, Operation
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.quantization.conversion.capture.training_behaviour import is_normalisation
from cpt_deploy.quantization.graph.operator_kinds import IS_FLOAT, module_of
from cpt_deploy.quantization.graph.shapes import describe, has_free_positions
from cpt_deploy.quantization.modules.attention import ScaledDotProductAttention
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding
from cpt_deploy.quantization.modules.stochastic_depth import is_stochastic_depth
from cpt_deploy.quantization.numerics.affine import quantize_weight, symmetric_quant_max
from cpt_deploy.signature import Signature

aten = torch.ops.aten

INPUT = "input:"
"""Prefix of the names of inputs while a graph is lowered, since nodes may have the same names."""


class FloatLowering:
    """Lowers nodes that compute in float.

    Args:
        network: The network of a prepared model.
        finished: The quantized tensors of the nodes that are lowered already.
        signature: Inputs and outputs of the network.

    Attributes:
        names: Names of the real values of nodes.
    """

    def __init__(
        self, network: fx.GraphModule, finished: Mapping[fx.Node, QuantizedTensor], signature: Signature
    ) -> None:
        self.network, self.finished = network, finished
        self._taken = {*signature.names}
        given = network.graph.find_nodes(op="placeholder")
        self.names = dict(zip(given, (INPUT + tensor.name for tensor in signature.inputs), strict=True))

    def real_name(self, node: fx.Node) -> str:
        """Return the name of a node's real values: the node's own, unless an input or output has that name."""
        name = node.name
        while name in self._taken:
            name += "_real"
        return name

    def name_of(self, node: fx.Node) -> str:
        """Return the name of a node's result, quantized or real."""
        return self.finished[node].name if node in self.finished else self.names[node]

    def lower(self, node: fx.Node, bits: Mapping[str, int]) -> list[Operation]:  # noqa: PLR0911
        """Return the operations of a node: none if it has no effect in evaluation, or is lowered with its quantizer."""
        if node.op == "get_attr":
            return [self._constant(self.real_name(node), attrgetter(str(node.target))(self.network), node)]
        module = module_of(node, self.network)
        if isinstance(module, QuantizedEmbedding):
            return [self._embed(node, module, bits[str(node.target)])]
        if not node.meta.get(IS_FLOAT):
            return []
        if module is None and node.target in CEILED and needs_factors(node):
            if has_free_positions(node.all_input_nodes[0]):
                raise ConversionError(
                    f"Expected average pooling without ceil_mode where sizes are free, but got "
                    f"{describe(node, self.network)} in float",
                    hint="use ceil_mode=False, or pass the example inputs without dynamic_shapes",
                )
            self.names[node] = self.real_name(node)
            return average_with_factors(node, self.name_of(node.all_input_nodes[0]), self.names[node])
        if module is None:
            return [self._call(node, node.target, node.args, node.kwargs)]
        source = node.all_input_nodes[0]
        if isinstance(module, nn.modules.dropout._DropoutNd) or is_stochastic_depth(module):
            self.names[node] = self.name_of(source)
            return []
        if isinstance(module, ScaledDotProductAttention):
            query, key, value, *mask = node.args
            arguments = (query, key, value, mask[0] if mask else None, 0.0, module.is_causal)
            options = {name: option for name, option in module.options().items() if name != "is_causal"}
            return [self._call(node, aten.scaled_dot_product_attention.default, arguments, options)]
        if isinstance(module, nn.RReLU):
            slope = (module.lower + module.upper) / 2
            return [self._call(node, aten.leaky_relu.default, (source, slope), {})]
        if is_normalisation(module):
            return self._normalisation(node, module)
        raise ConversionError(f"Expected an operation that can be frozen, but got {describe(node, self.network)}")

    def _constant(self, name: str, value: torch.Tensor, node: fx.Node | None = None) -> Constant:
        if node is not None:
            self.names[node] = name
        return Constant((), name, np.asarray(value.detach().cpu().numpy(), order="C"))

    def _call(self, node: fx.Node, target: Any, arguments: Any, options: Any) -> Float:
        inputs = list(node.all_input_nodes)
        self.names[node] = self.real_name(node)
        return Float(
            tuple(self.name_of(source) for source in inputs),
            self.real_name(node),
            *encode(target, arguments, options, inputs),
        )

    def _normalisation(self, node: fx.Node, norm: Any) -> list[Operation]:
        """Lower a BatchNorm: by its running averages, or by the batch's statistics if it keeps none."""
        shape = (-1, *[1] * (len(node.meta["shape"]) - 2))
        names = {part: f"{self.real_name(node)}_{part}" for part in ("factor", "offset", "scaled")}
        source = self.name_of(node.all_input_nodes[0])
        self.names[node] = self.real_name(node)
        affine = norm.weight is not None
        if norm.running_mean is None:
            result = f"{self.real_name(node)}_normalised" if affine else self.real_name(node)
            operations = by_own_statistics(source, result, self.real_name(node), norm.eps, len(node.meta["shape"]))
            if not affine:
                return operations
            source, factor, offset = result, norm.weight, norm.bias
        else:
            factor = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if affine else 1.0)
            offset = -norm.running_mean * factor + (norm.bias if affine else 0.0)
            operations = []
        return [
            *operations,
            self._constant(names["factor"], factor.view(shape)),
            self._constant(names["offset"], offset.view(shape)),
            float_call("aten.mul.Tensor", (source, names["factor"]), names["scaled"]),
            float_call("aten.add.Tensor", (names["scaled"], names["offset"]), self.real_name(node)),
        ]

    def _embed(self, node: fx.Node, layer: QuantizedEmbedding, bits: int) -> Embed:
        quant_max = torch.tensor(float(symmetric_quant_max(bits)))
        with torch.no_grad():
            codes, scales = quantize_weight(layer.float_weight.cpu(), quant_max)
        self.names[node] = self.real_name(node)
        return Embed(
            (self.name_of(node.all_input_nodes[0]),),
            self.real_name(node),
            codes.to(torch.int8).numpy(),
            0,
            scales.reshape(-1).float().numpy(),
            np.zeros(0, np.int32),
            bits,
            str(node.target),
        )
