"""From a CPT model to an integer graph: each run of nodes between two quantizers becomes one integer operation."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.freezing.folding import FoldedWeights, channelwise, fold_layer, normalisation
from cpt_deploy.freezing.graph import (
    Add,
    Concatenate,
    Convolution,
    FullyConnected,
    GlobalAverage,
    IntegerGraph,
    Multiply,
    Operation,
    QuantizedTensor,
    Reshape,
)
from cpt_deploy.freezing.lookup import tabulate
from cpt_deploy.freezing.movements import KeptTensor, lower_kept
from cpt_deploy.quantization.affine import affine_parameters, unsigned_levels
from cpt_deploy.quantization.edges import EdgeQuantizer, LayerInput
from cpt_deploy.quantization.layers import QuantizedConv1d, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.tracing import ChannelwiseConstant, describe, propagate_shapes, shape_of
from cpt_deploy.quantization.vocabulary import Kind, classify, computes

MOST_EXPORT_BITS = 8


def freeze(model: QuantizedModel, *, weight_bits: int | None = None) -> IntegerGraph:
    """Freeze a model to integers: activations at the upper bound, at most 8 bits, weights at the bits asked for.

    Layers that hold the upper bound keep it. The model must have been settled at these bits (`settle`).

    Args:
        model: A trained CPT model; it is not changed.
        weight_bits: Bits of the cycling layers' weights, 2 to 8; None is the upper bound.

    Raises:
        UsageError: If the bits are outside 2 to 8.
        ConversionError: If an edge has not seen any data, or an operation cannot be executed in integers.
    """
    bits = min(model.config.upper, MOST_EXPORT_BITS) if weight_bits is None else weight_bits
    if not 2 <= bits <= MOST_EXPORT_BITS:
        raise UsageError(f"Expected bits to export between 2 and {MOST_EXPORT_BITS}, but got {bits}")
    return _Lowering(model, bits).run()


class _Lowering:
    """Walks the graph once; `tensors` maps each finished node to its quantized tensor."""

    def __init__(self, model: QuantizedModel, weight_bits: int) -> None:
        self.network = model.network
        self.upper = min(model.config.upper, MOST_EXPORT_BITS)
        self.weight_bits = weight_bits
        self.finished: dict[fx.Node, QuantizedTensor] = {}
        self.parts: dict[fx.Node, KeptTensor] = {}
        self.operations: list[Operation] = []
        self.tensors: dict[str, QuantizedTensor] = {}
        propagate_shapes(self.network, model.input_shape)

    def run(self) -> IntegerGraph:
        source = ""
        for node in self.network.graph.nodes:
            if node.op == "output":
                return IntegerGraph(source, self.finished[node.args[0]].name, tuple(self.operations), self.tensors)
            module = self._module(node)
            if isinstance(module, EdgeQuantizer):
                self._lower_edge(node, module)
                source = source or self.finished[node].name
            elif isinstance(module, LayerInput):
                self.finished[node] = self.finished[node.all_input_nodes[0]]
            elif self._is_kept(node):
                self._lower_kept(node)
        raise AssertionError("a traced graph ends with its output")

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_kept(self, node: fx.Node) -> bool:
        if not computes(node):
            return False
        reads = [source for source in node.all_input_nodes if source in self.finished or source in self.parts]
        return bool(reads) and classify(node, self.network) is Kind.KEEP

    # --- edges --------------------------------------------------------------------------------------------------

    def _lower_edge(self, node: fx.Node, edge: EdgeQuantizer) -> None:
        chain = self._chain(node.all_input_nodes[0])
        tensor = self._edge_tensor(node, edge)
        head = chain[0]
        if head.op != "placeholder":
            sources = tuple(self.finished[source] for source in head.all_input_nodes if source in self.finished)
            operation, tensor = self._lower_chain(chain, sources, tensor)
            self.operations.append(operation)
        self._finish(node, tensor)

    def _finish(self, node: fx.Node, tensor: QuantizedTensor) -> None:
        self.finished[node] = tensor
        self.tensors[tensor.name] = tensor

    def _chain(self, end: fx.Node) -> list[fx.Node]:
        """Return the nodes from the first that reads finished tensors to `end`."""
        chain = [end]
        while chain[0].op != "placeholder" and not any(node in self.finished for node in chain[0].all_input_nodes):
            chain.insert(0, chain[0].all_input_nodes[0])
        return chain

    def _edge_tensor(self, node: fx.Node, edge: EdgeQuantizer) -> QuantizedTensor:
        name = str(node.target).removeprefix("edges.")
        if int(edge.batches) == 0:
            raise ConversionError(
                f"Expected the activation range of {name!r} to be known, but it has seen no data",
                hint="train the model, or settle it on some batches, before freezing",
            )
        if not bool(torch.isfinite(edge.low) and torch.isfinite(edge.high)):
            raise ConversionError(
                f"Expected the activation range of {name!r} to be finite, but it is [{edge.low}, {edge.high}]",
                hint="the model has diverged: train it again with a lower learning rate",
            )
        bits = max(self.upper, edge.least_bits)
        levels = torch.tensor(float(unsigned_levels(bits)))
        scale, zero_point = affine_parameters(edge.low.cpu(), edge.high.cpu(), levels)
        return QuantizedTensor(name, float(scale), int(zero_point), bits, shape_of(node))

    def _lower_chain(
        self, chain: list[fx.Node], sources: tuple[QuantizedTensor, ...], output: QuantizedTensor
    ) -> tuple[Operation, QuantizedTensor]:
        kind = classify(chain[0], self.network)
        module = self._module(chain[0])
        if kind in (Kind.TABLE, Kind.CLAMP):
            assert module is not None
            if not (isinstance(module, nn.Hardsigmoid) and _has_positions(sources[0])):
                return tabulate(module, sources[0], output)
        return self._lower_arithmetic(chain, kind, sources, output), output

    def _lower_arithmetic(
        self, chain: list[fx.Node], kind: Kind, sources: tuple[QuantizedTensor, ...], output: QuantizedTensor
    ) -> Operation:
        head = chain[0]
        names = tuple(source.name for source in sources)
        if kind is Kind.LAYER:
            return self._lower_layer(head, self._norm_in(chain[1:]), sources[0], output)
        if kind in (Kind.NORM, Kind.CONSTANT, Kind.AVERAGE, Kind.TABLE):
            return self._lower_channelwise(head, kind, sources[0], output)
        if kind is Kind.CONCATENATE:
            axis = int(head.kwargs.get("dim", head.args[1] if len(head.args) > 1 else 0))  # type: ignore[arg-type]
            order = tuple(self.finished[source].name for source in head.args[0])  # type: ignore[union-attr,index]
            return Concatenate(order, output.name, axis % (len(output.shape) + 1))
        if kind in (Kind.ADD, Kind.MULTIPLY):
            pair = names if len(names) == 2 else (names[0], names[0])
            return (Add if kind is Kind.ADD else Multiply)(pair, output.name)
        assert kind is Kind.GLOBAL_AVERAGE, kind
        return self._lower_global_average(names, output)

    def _norm_in(self, nodes: list[fx.Node]) -> nn.BatchNorm1d | nn.BatchNorm2d | None:
        for node in nodes:
            module = self._module(node)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                return module
        return None

    # --- operations -----------------------------------------------------------------------------------------------

    def _lower_layer(
        self,
        node: fx.Node,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        source: QuantizedTensor,
        output: QuantizedTensor,
    ) -> Operation:
        layer = self._module(node)
        assert isinstance(layer, QuantizedLayer)
        bits = self.upper if layer.role == "hold" else self.weight_bits
        folded = fold_layer(layer, norm, bits, source.scale)
        weights: dict[str, Any] = {"bits": bits, **_fields(folded)}
        ends: dict[str, Any] = {"inputs": (source.name,), "output": output.name, "source": str(node.target)}
        if isinstance(layer, QuantizedLinear):
            return FullyConnected(**ends, **weights)
        assert isinstance(layer, QuantizedConv1d | QuantizedConv2d)
        return Convolution(
            **ends,
            **weights,
            strides=layer.stride,
            pads=_pads(layer),
            dilations=layer.dilation,
            groups=layer.groups,
        )

    def _lower_channelwise(
        self, node: fx.Node, kind: Kind, source: QuantizedTensor, output: QuantizedTensor
    ) -> Operation:
        module = self._module(node)
        dimensions = len(source.shape) - 1
        if not _has_positions(source):
            raise ConversionError(
                f"Expected {describe(node, self.network)} on (N, C, L) or (N, C, H, W), but got {source.shape}"
            )
        channels = source.shape[0]
        if kind is Kind.AVERAGE:
            assert module is not None
            return _average(module, source, output)
        if kind is Kind.NORM:
            factor, offset = normalisation(module, channels)  # type: ignore[arg-type]
        elif isinstance(module, nn.Hardsigmoid):
            # x/6 + 1/2, cut at 0 by the zero point and at 1 by the greatest code: the observed range lies in [0, 1]
            factor, offset = np.full(channels, 1 / 6), np.full(channels, 0.5)
        else:
            assert isinstance(module, ChannelwiseConstant)
            factor, offset = np.full(channels, module.factor), np.full(channels, module.offset)
        folded = channelwise(factor, offset, dimensions, source.scale)
        return _depthwise(folded, source, output, str(node.target), (1,) * dimensions, (0,) * 2 * dimensions)

    def _lower_global_average(self, names: tuple[str, ...], output: QuantizedTensor) -> Operation:
        if len(output.shape) == 3:
            return GlobalAverage(names, output.name)
        # `x.mean([2, 3])` drops the spatial dimensions; the pooled tensor keeps them and is flattened.
        pooled = QuantizedTensor(
            f"{output.name}_pooled", output.scale, output.zero_point, output.bits, (*output.shape, 1, 1)
        )
        self.tensors[pooled.name] = pooled
        self.operations.append(GlobalAverage(names, pooled.name))
        return _reshape(pooled, output)

    # --- what only moves codes --------------------------------------------------------------------------------------

    def _lower_kept(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        if source in self.parts:
            index = int(node.args[1]) if node.target is operator.getitem else 0  # type: ignore[arg-type]
            operation, tensor = self.parts[source].part(index, node.name)
            self.operations.append(operation)
            self._finish(node, tensor)
            return
        lowered = lower_kept(node, self._module(node), self.finished[source])
        if isinstance(lowered, KeptTensor):
            self.parts[node] = lowered
        elif lowered is None:
            self.finished[node] = self.finished[source]
        else:
            self.operations.append(lowered[0])
            self._finish(node, lowered[1])


def _fields(folded: FoldedWeights) -> dict[str, Any]:
    return {"codes": folded.codes, "shift": folded.shift, "scales": folded.scales, "bias": folded.bias}


def _has_positions(tensor: QuantizedTensor) -> bool:
    """Return whether a tensor is (N, C, L) or (N, C, H, W), so that a convolution can run on it."""
    return len(tensor.shape) in (2, 3)


def _reshape(source: QuantizedTensor, output: QuantizedTensor) -> Operation:
    return Reshape((source.name,), output.name)


def _pads(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Return a layer's padding as ONNX wants it: begins of all dimensions, then ends."""
    if layer.padding == "valid":
        return (0,) * 2 * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        begins = [t // 2 for t in total]
        return (*begins, *(t - b for t, b in zip(total, begins, strict=True)))
    return (*(int(p) for p in layer.padding),) * 2


def _depthwise(
    folded: FoldedWeights,
    source: QuantizedTensor,
    output: QuantizedTensor,
    name: str,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
) -> Convolution:
    return Convolution(
        inputs=(source.name,),
        output=output.name,
        **_fields(folded),
        bits=8,
        source=name,
        strides=strides,
        pads=pads,
        dilations=(1,) * len(strides),
        groups=source.shape[0],
    )


def _average(module: nn.Module, source: QuantizedTensor, output: QuantizedTensor) -> Convolution:
    """Write average pooling as a depthwise convolution with all codes 1: its sums are exact integers."""
    kernel, strides, padding = _average_window(module, source, output)
    channels = source.shape[0]
    codes = np.ones((channels, 1, *kernel), dtype=np.int8)
    scales = np.full(channels, 1.0 / float(np.prod(kernel)), dtype=np.float32)
    folded = FoldedWeights(codes, 0, scales, np.zeros(channels, dtype=np.int32))
    return _depthwise(folded, source, output, type(module).__name__, strides, padding)


def _average_window(
    module: nn.Module, source: QuantizedTensor, output: QuantizedTensor
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    if not isinstance(module, nn.AvgPool2d):  # adaptive pooling to a divisor of the input's size
        kernel = tuple(b // a for b, a in zip(source.shape[1:], output.shape[1:], strict=True))
        return kernel, kernel, (0, 0, 0, 0)
    pair: Callable[[Any], tuple[int, ...]] = lambda v: tuple(v) if isinstance(v, tuple | list) else (v, v)  # noqa: E731
    kernel, strides, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    cut = any((size + 2 * p - k) % s for size, k, s, p in zip(source.shape[1:], kernel, strides, padding, strict=True))
    if module.divisor_override or (any(padding) and not module.count_include_pad) or (module.ceil_mode and cut):
        raise ConversionError(
            f"Expected AvgPool2d whose windows all have the same divisor, but got {module}",
            hint="use count_include_pad=True, ceil_mode=False and no divisor_override",
        )
    return kernel, strides, padding * 2
