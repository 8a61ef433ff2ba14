"""Which operators an integer operation absorbs: BatchNorm and arithmetic with constants per channel, then a clamp."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, attributes_of, is_standard
from cpt_deploy.onnx_graph.reading.running import Measured
from cpt_deploy.quantization.folding import Floats


class Absorber:
    """Extends integer operations by what they absorb.

    Args:
        network: The network.
        measured: All its tensors, as seen in one run.
    """

    def __init__(self, network: OnnxNetwork, measured: Mapping[str, Measured]) -> None:
        self.network, self.measured = network, measured

    # --- facts --------------------------------------------------------------------------------------------------------

    def _is_real(self, name: str) -> bool:
        """Return whether a tensor is computed, float32, and has a dimension after the first."""
        seen = self.measured.get(name)
        return seen is not None and seen.is_float and len(seen.shape) >= 2 and name not in self.network.constants

    def _rank(self, name: str) -> int:
        return len(self.measured[name].shape)

    def _constant(self, name: str) -> Floats | None:
        array = self.network.array(name) if name else None
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            return None
        values: Floats = array.astype(np.float64)
        return values

    def _only_reader(self, name: str) -> int | None:
        """Return the position of the operator that reads a tensor, if nothing else does."""
        readers = self.network.readers.get(name, [])
        if len(readers) != 1 or name in self.network.output_names:
            return None
        reader = self.network.nodes[readers[0]]
        return readers[0] if list(reader.input).count(name) == 1 else None

    # --- what operations absorb -----------------------------------------------------------------------------------

    def _with_chain(self, found: Found, axis: int) -> Found:
        """Absorb BatchNorm and arithmetic with constants per channel, then a clamp or a hard sigmoid."""
        assert found.factor is not None
        while (reader := self._only_reader(found.output)) is not None:
            step = self._affine(self.network.nodes[reader], found.output, axis, len(found.factor))
            hard = self.network.nodes[reader].op_type == "HardSigmoid"
            if step is None or (hard and not found.is_convolution):
                break
            assert found.factor is not None
            assert found.offset is not None
            factor, offset = step
            found = replace(
                found,
                nodes=(*found.nodes, reader),
                output=self.network.nodes[reader].output[0],
                factor=found.factor * factor,
                offset=found.offset * factor + offset,
                clamped=hard,
            )
            if hard:
                return found
        return self._with_clamp(found)

    def _with_clamp(self, found: Found) -> Found:
        reader = self._only_reader(found.output)
        if reader is None or not self._is_clamp(self.network.nodes[reader]):
            return found
        output = self.network.nodes[reader].output[0]
        return replace(found, nodes=(*found.nodes, reader), output=output, clamped=True)

    def _is_clamp(self, node: onnx.NodeProto) -> bool:
        if is_standard(node, "Relu"):
            return True
        if not is_standard(node, "Clip") or len(node.input) < 2:
            return False
        low, *high = (self.network.array(name) if name else None for name in node.input[1:])
        if low is None or low.size != 1 or float(low.reshape(-1)[0]) != 0:
            return False
        if len(node.input) > 2 and node.input[2]:
            return high[0] is not None and high[0].size == 1 and float(high[0].reshape(-1)[0]) > 0
        return True

    def _affine(  # noqa: PLR0911
        self, node: onnx.NodeProto, source: str, axis: int, channels: int
    ) -> tuple[Floats, Floats] | None:
        """Return factor and offset per channel of an operator that computes `x · factor + offset`."""
        if node.domain not in ("", "ai.onnx") or not self._is_real(source):
            return None
        if is_standard(node, "HardSigmoid"):
            attributes = attributes_of(node)
            alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
            return np.full(channels, alpha), np.full(channels, beta)
        if is_standard(node, "BatchNormalization"):
            return self._normalisation(node, source, axis, channels)
        if not is_standard(node, "Add", "Sub", "Mul", "Div") or node.input[0] == node.input[1]:
            return None
        place = list(node.input).index(source)
        values = self._per_channel(node.input[1 - place], self._rank(source), axis, channels)
        if values is None:
            return None
        one, zero = np.ones(channels), np.zeros(channels)
        match node.op_type:
            case "Add":
                return one, values
            case "Mul":
                return values, zero
            case "Sub":
                return (one, -values) if place == 0 else (-one, values)
            case _:
                return (1 / values, zero) if place == 0 and values.all() else None

    def _normalisation(
        self, node: onnx.NodeProto, source: str, axis: int, channels: int
    ) -> tuple[Floats, Floats] | None:
        attributes = attributes_of(node)
        if node.input[0] != source or axis != 1 or attributes.get("training_mode", 0) or len(node.output) > 1:
            return None
        values = [self._constant(name) for name in node.input[1:5]]
        if any(value is None or value.shape != (channels,) for value in values):
            return None
        gamma, beta, mean, variance = (value for value in values if value is not None)
        factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        return factor, beta - mean * factor

    def _per_channel(self, name: str, rank: int, axis: int, channels: int) -> Floats | None:
        """Return a constant that broadcasts along all dimensions but one, as (C,)."""
        values = self._constant(name)
        if values is None or values.ndim > rank:
            return None
        shape = (*[1] * (rank - values.ndim), *values.shape)
        if any(size != 1 for place, size in enumerate(shape) if place != axis) or shape[axis] not in (1, channels):
            return None
        return np.broadcast_to(values.reshape(-1), (channels,))
