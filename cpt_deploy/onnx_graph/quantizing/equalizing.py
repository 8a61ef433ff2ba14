"""Equalize channels: divide those of a quantized tensor by factors that the layers which read it multiply back.

All channels of an activation share one scale, so a channel of a small range has few quantized values left, and a
depthwise layer, which mixes no channels, can make it large again. Factors per channel cost nothing between a layer,
whose weights have a scale per output channel, and depthwise ones (M. Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", arXiv:1906.04721, with the ranges of activations instead of weights).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.finding.choosing import Choice
from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.quantizing.reinterpreting import is_uniform
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.running import Measured, Runner, Sample
from cpt_deploy.quantization.folding import Floats

#: Largest ratio of two factors of a tensor: a channel that was almost zero in calibration keeps some headroom.
MAX_RATIO = 64.0
#: Mean of the squared inverse factors above which they are worth a depthwise layer in place of a linear function.
WORTH = 16.0
#: Movements that keep channels where they are.
_KEEPING = frozenset({"MaxPool", "Pad", "Resize"})
_PEAKS = "cpt_peaks:"


class Equalizer:
    """Finds factors for the channels of quantized tensors.

    Args:
        network: The network.
        measured: Its tensors, as seen in a run.
        choice: Its integer operations.
    """

    def __init__(self, network: OnnxNetwork, measured: Mapping[str, Measured], choice: Choice) -> None:
        self.network, self.measured, self.choice = network, measured, choice
        self._parent: dict[str, str] = {}
        self._bound: set[str] = set()
        inside = {node for operation in choice.operations for node in operation.nodes}
        for name in choice.quantized:
            outside = any(reader not in inside for reader in network.readers.get(name, []))
            if outside or name in network.output_names or name in choice.entries or len(self._shape(name)) < 2:
                self._bound.add(name)
        for operation in choice.operations:
            self._tie(operation)
        for operation in choice.operations:
            if operation.kind == "multiply":
                self._tie_product(operation)

    def equalized(self, samples: Iterable[Sample]) -> tuple[Choice, dict[str, Floats]]:
        """Return the operations with factors in their weights, and the factors (C,) by which tensors are divided.

        Args:
            samples: Samples on which the channels' ranges are measured.
        """
        classes: dict[str, list[str]] = defaultdict(list)
        for name in self.choice.quantized:
            if not self._is_bound(name):
                classes[self._root(name)].append(name)
        free = [names for names in classes.values() if self._is_free(names)]
        if not free:
            return self.choice, {}
        peaks = self._peaks([name for names in free for name in names], samples)
        factors: dict[str, Floats] = {}
        for names in free:
            largest = np.max([peaks[name] for name in names], axis=0)
            if not np.isfinite(largest).all() or not largest.any():
                continue
            found = np.maximum(largest / largest.max(), 1 / MAX_RATIO)
            if not self._has_linear(names) or np.mean(found**-2) > WORTH:
                factors.update(dict.fromkeys(names, found))
        operations = tuple(_scaled(operation, factors) for operation in self.choice.operations)
        return replace(self.choice, operations=operations), factors

    # --- which tensors have the same factors ------------------------------------------------------------------------

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.measured[name].shape

    def _root(self, name: str) -> str:
        while name != (parent := self._parent.setdefault(name, name)):
            name = parent
        return name

    def _is_bound(self, name: str) -> bool:
        """Return whether the factors of a tensor have to be 1."""
        return self._root(name) in self._bound or name in self._bound

    def _bind(self, *names: str) -> None:
        self._bound.update(map(self._root, names))

    def _join(self, *names: str) -> None:
        """Let tensors have the same factors."""
        if len({self._shape(name)[1:2] for name in names}) > 1:
            self._bind(*names)
            return
        bound = any(map(self._is_bound, names))
        for name in names[1:]:
            self._parent[self._root(name)] = self._root(names[0])
        if bound:
            self._bind(names[0])

    def _tie(self, operation: Found) -> None:
        last = self.network.nodes[operation.nodes[-1]]
        if operation.clamped and last.op_type != "Relu":
            self._bind(operation.output)  # its upper bound would be another one for each channel
        match operation.kind:
            case "convolution" | "transposed" | "connected" | "channelwise":
                if operation.kind == "connected" and len(self._shape(operation.inputs[0])) != 2:
                    self._bind(*operation.inputs)
            case "add" | "average" | "global_average":
                self._join(*operation.inputs, operation.output)
            case "movement" if last.op_type in _KEEPING and not self._moves_channels(last):
                self._join(*operation.inputs, operation.output)
            case "table" if last.op_type in ("Relu", "LeakyRelu"):
                self._join(*operation.inputs, operation.output)
            case "multiply":
                pass
            case _:
                self._bind(*operation.inputs, operation.output)

    def _moves_channels(self, node: onnx.NodeProto) -> bool:
        """Return whether a padding adds or removes channels, or may do so."""
        if node.op_type != "Pad":
            return False
        arrays = [self.network.array(name) if name else None for name in node.input[1:]]
        pads, axes = arrays[0], arrays[2] if len(arrays) > 2 else None
        if pads is None or (axes is None and len(node.input) > 3 and node.input[3]):
            return True
        rank = len(self._shape(node.input[0]))
        places = range(rank) if axes is None else [int(axis) % rank for axis in axes]
        return any(axis == 1 and (pads[place] or pads[place + len(places)]) for place, axis in enumerate(places))

    def _tie_product(self, operation: Found) -> None:
        """Give the factors of one operand of a product to its result; those of the other are 1."""
        first, second = operation.inputs
        if self._is_bound(first) or self._shape(first)[1] != self._shape(operation.output)[1]:
            first, second = second, first
        self._bind(second)
        if first == second:
            self._bind(operation.output)
        else:
            self._join(first, operation.output)

    # --- factors ----------------------------------------------------------------------------------------------------

    def _is_free(self, names: list[str]) -> bool:
        """Return whether layers read tensors, and all of them are depthwise."""
        readers = [o for o in self.choice.operations if o.factor is not None and o.inputs[0] in names]
        channels = self._shape(names[0])[1]
        return bool(readers) and all(o.kind == "channelwise" or _groups(o) == channels for o in readers)

    def _has_linear(self, names: list[str]) -> bool:
        """Return whether a linear function that costs nothing without factors has tensors as its input or output."""
        return any(is_uniform(o) and {o.inputs[0], o.output} & {*names} for o in self.choice.operations)

    def _peaks(self, names: list[str], samples: Iterable[Sample]) -> dict[str, Floats]:
        """Return the greatest absolute value of each channel of tensors, (C,) each."""
        probes, constants = [], {}
        for name in names:
            axes = [axis for axis in range(len(self._shape(name))) if axis != 1]
            absolute, key = f"cpt_absolute:{name}", f"cpt_others_{len(axes)}"
            probes.append(helper.make_node("Abs", [name], [absolute]))
            if self.network.opsets[""] < 18:
                probes.append(helper.make_node("ReduceMax", [absolute], [_PEAKS + name], axes=axes, keepdims=0))
            else:
                constants[key] = np.array(axes, np.int64)
                probes.append(helper.make_node("ReduceMax", [absolute, key], [_PEAKS + name], keepdims=0))
        model = self.network.to_model(probes, [_PEAKS + name for name in names])
        model.graph.initializer.extend(numpy_helper.from_array(x, key) for key, x in constants.items())
        runner, peaks = Runner(model, self.network), {name: np.zeros(self._shape(name)[1]) for name in names}
        for sample in samples:
            results = runner.run(sample, [_PEAKS + name for name in names])
            peaks = {name: np.maximum(peak, results[_PEAKS + name]) for name, peak in peaks.items()}
        return peaks


def _groups(operation: Found) -> int:
    return int((operation.attributes or {}).get("groups", 1))


def _scaled(operation: Found, factors: Mapping[str, Floats]) -> Found:
    """Return an operation that reads tensors divided by factors, and divides its result by its own."""
    if operation.factor is None or operation.offset is None:
        return operation
    before, after = factors.get(operation.inputs[0]), factors.get(operation.output)
    weight, factor, offset = operation.weight, operation.factor, operation.offset
    if before is not None and weight is None:
        factor = factor * before
    elif before is not None and weight is not None:
        groups = _groups(operation)
        columns = before.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        weight = (weight.reshape(groups, -1, *weight.shape[1:]) * columns).reshape(weight.shape)
    if after is not None:
        factor, offset = factor / after, offset / after
    return replace(operation, weight=weight, factor=factor, offset=offset)
