"""The float parts of a trained model as operations of a frozen graph."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpt_deploy.bundle.runtime import INPUT_NAME
from cpt_deploy.errors import ConversionError
from cpt_deploy.freezing.float_calls import encode
from cpt_deploy.freezing.graph import Constant, Embed, Float, Operation, QuantizedTensor
from cpt_deploy.quantization.affine import quantize_weight, symmetric_levels
from cpt_deploy.quantization.attention import ScaledDotProductAttention
from cpt_deploy.quantization.capture import is_stochastic_depth
from cpt_deploy.quantization.layers import QuantizedEmbedding
from cpt_deploy.quantization.tracing import describe
from cpt_deploy.quantization.vocabulary import IS_FLOAT

aten = torch.ops.aten


class FloatLowering:
    """Lowers nodes that compute in float.

    Args:
        network: The network of a prepared model.
        finished: The quantized tensors of nodes, as they are lowered.

    Attributes:
        names: Names of the real values of nodes.
        input: Name of the input.
        real_input: Its type and shape.
    """

    def __init__(self, network: fx.GraphModule, finished: Mapping[fx.Node, QuantizedTensor]) -> None:
        self.network, self.finished = network, finished
        self.names: dict[fx.Node, str] = {}
        given = next(iter(network.graph.find_nodes(op="placeholder")))
        self.input = INPUT_NAME if "shape" in given.meta else "input_ids"
        self.names[given] = self.input
        dtype = str(given.meta["dtype"]).removeprefix("torch.")
        self.real_input = (dtype, tuple(int(size) for size in given.meta["val"].shape[1:]))

    def name_of(self, node: fx.Node) -> str:
        """Return the name of what a node makes, in codes or real."""
        return self.finished[node].name if node in self.finished else self.names[node]

    def lower(self, node: fx.Node, bits: Mapping[str, int]) -> list[Operation]:  # noqa: PLR0911
        """Return the operations of a node: none for one that does nothing in evaluation, or ends in a quantizer."""
        if node.op == "get_attr":
            return [self._constant(node.name, attrgetter(str(node.target))(self.network), node)]
        module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizedEmbedding):
            return [self._embed(node, module, bits[str(node.target)])]
        if not node.meta.get(IS_FLOAT):
            return []
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
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return self._batch_norm(node, module)
        raise ConversionError(f"Expected an operation that can be frozen, but got {describe(node, self.network)}")

    def _constant(self, name: str, value: torch.Tensor, node: fx.Node | None = None) -> Constant:
        if node is not None:
            self.names[node] = name
        return Constant((), name, np.ascontiguousarray(value.detach().cpu().numpy()))

    def _call(self, node: fx.Node, target: Any, arguments: Any, options: Any) -> Float:
        inputs = list(node.all_input_nodes)
        self.names[node] = node.name
        return Float(
            tuple(self.name_of(source) for source in inputs), node.name, *encode(target, arguments, options, inputs)
        )

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> list[Operation]:
        inverse = torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
        factor = inverse if norm.weight is None else norm.weight * inverse
        offset = -norm.running_mean * factor + (0.0 if norm.bias is None else norm.bias)  # type: ignore[operator]
        shape = (-1, *[1] * (len(node.meta["shape"]) - 2))
        names = (f"{node.name}_factor", f"{node.name}_offset", f"{node.name}_scaled")
        self.names[node] = node.name
        pair = '[[{"input": 0}, {"input": 1}], {}]'
        return [
            self._constant(names[0], factor.view(shape)),
            self._constant(names[1], offset.view(shape)),
            Float((self.name_of(node.all_input_nodes[0]), names[0]), names[2], "aten.mul.Tensor", pair),
            Float((names[2], names[1]), node.name, "aten.add.Tensor", pair),
        ]

    def _embed(self, node: fx.Node, layer: QuantizedEmbedding, bits: int) -> Embed:
        levels = torch.tensor(float(symmetric_levels(bits)))
        with torch.no_grad():
            codes, scales = quantize_weight(layer.float_weight.cpu(), levels)
        self.names[node] = node.name
        return Embed(
            (self.name_of(node.all_input_nodes[0]),),
            node.name,
            codes.to(torch.int8).numpy(),
            0,
            scales.reshape(-1).float().numpy(),
            np.zeros(0, np.int32),
            bits,
            str(node.target),
        )
