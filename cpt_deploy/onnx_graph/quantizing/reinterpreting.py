"""Linear functions of whole tensors without arithmetic: the same integers with other quantization parameters.

With the scale `a · s` and the zero point `z − b / (a · s)`, the integers of `x` are those of `a · x + b`. This zero
point is rounded, and the layers that read the result subtract the difference in their biases. A hard sigmoid is such a
function with a clamp; for it the scale of `x` is made a divisor of `b / a`. So `x · hardsigmoid(x)`, the hard swish, is
one product.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from cpt_deploy.integer.operations import Reinterpret
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.finding.choosing import Choice
from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.quantizing.bits import Bits
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, is_standard

#: Allowed ratio of a scale to the one without these functions.
WIDER = 1.25
#: Least distance of the zero points of `x` and its hard sigmoid, since it is rounded down.
LEAST_STEPS = 8
#: Allowed difference of two zero points from an integer for a hard sigmoid.
_EXACT = 1e-3
#: Operations whose results have quantization parameters of their own.
_OWN = ("add", "average", "concatenate", "connected", "convolution", "global_average", "multiply", "transposed")


def is_uniform(operation: Found) -> bool:
    """Return whether an operation is an increasing linear function, the same one in all channels."""
    if operation.kind != "channelwise" or operation.factor is None or operation.offset is None:
        return False
    factor, offset = operation.factor, operation.offset
    return bool(len(factor) and factor[0] > 0 and (factor == factor[0]).all() and (offset == offset[0]).all())


class Reinterpreter:
    """Finds the linear functions that keep integers, and the quantization parameters for it.

    Args:
        network: The network.
        choice: Its integer operations.
        bounds: Ranges of quantized tensors.
        bits: Bits of tensors.
    """

    def __init__(
        self, network: OnnxNetwork, choice: Choice, bounds: Mapping[str, tuple[float, float]], bits: Bits
    ) -> None:
        self.network, self.bounds, self.bits = network, bounds, bits
        #: Scales and zero points of the tensors that such functions read.
        self.parameters: dict[str, tuple[float, int]] = {}
        #: By how much the results of such functions are too large, at most half a step, since zero points are rounded.
        self.excess: dict[str, float] = {}
        if bits.precision.symmetric:
            return  # all zero points are 0
        own = {o.output for o in choice.operations if o.kind in _OWN} - choice.real | {*choice.entries}
        own &= _before_convolutions(choice)
        clamped = {o.output for o in choice.operations if o.clamped}
        readers: dict[str, list[Found]] = defaultdict(list)
        for operation in choice.operations:
            for name in dict.fromkeys(operation.inputs):
                readers[name].append(operation)
        for name in own & readers.keys():
            linear = [o for o in readers[name] if is_uniform(o) and self._has_form(o)]
            found = self._parameters(name, linear, readers[name], clamped=name in clamped) if linear else None
            if found is not None:
                self.parameters[name] = found

    def reinterpreted(
        self, operation: Found, source: QuantizedTensor, output: QuantizedTensor
    ) -> tuple[Reinterpret, QuantizedTensor] | None:
        """Return a linear function as an operation with its output tensor; None if it needs arithmetic."""
        if operation.inputs[0] not in self.parameters or not is_uniform(operation) or not self._has_form(operation):
            return None
        factor, root = _line(operation)
        scale = float(np.float32(factor * source.scale))
        zero_point = source.zero_point + round(root / source.scale)
        low, high = source.quant_min, source.quant_max
        if self._is_hard_sigmoid(operation):
            low, high = zero_point, min(high, zero_point + round(1 / scale))
        elif operation.clamped:
            low = zero_point
        made = QuantizedTensor(output.name, scale, zero_point, source.bits, output.shape, source.signed)
        return Reinterpret((source.name,), made.name, low, high), made

    def _is_hard_sigmoid(self, operation: Found) -> bool:
        return is_standard(self.network.nodes[operation.nodes[-1]], "HardSigmoid")

    def _has_form(self, operation: Found) -> bool:
        """Return whether the clamp of a linear function, if it has one, is a hard sigmoid's or a ReLU's."""
        last = self.network.nodes[operation.nodes[-1]]
        return not operation.clamped or is_standard(last, "HardSigmoid", "Relu")

    def _parameters(
        self, name: str, linear: list[Found], readers: list[Found], *, clamped: bool
    ) -> tuple[float, int] | None:
        """Return parameters of a tensor with which functions of it have zero points; None if they are too coarse.

        The clamp that a tensor ends with is that of its integers, so their range cannot be wider.
        """
        (low, high), quant_max = self.bounds[name], self.bits.quant_max(name)
        roots = [root for _, root in map(_line, linear)]
        widths = [high - low]
        for operation, (factor, _) in zip(linear, map(_line, linear), strict=True):
            if not operation.clamped:
                begin, end = self.bounds[operation.output]
                widths.append((end - begin) / factor)
        if clamped and not all(min(low, 0.0) <= root <= max(high, 0.0) for root in roots):
            return None
        if self._is_zero_below(name, readers):
            low = max(low, roots[0])
        low, high = min(low, 0.0, *roots), max(high, 0.0, *roots)
        scale, sigmoids = (high - low) / quant_max, [_line(o)[1] for o in linear if self._is_hard_sigmoid(o)]
        if sigmoids and scale > 0:
            steps = math.floor(abs(sigmoids[0]) / scale)
            if steps < LEAST_STEPS:
                return None
            scale = abs(sigmoids[0]) / steps
        # A result has the steps of its source, which may be as coarse as those of the result if nothing else reads it.
        allowed = max(widths) if len(linear) == len(readers) else widths[0]
        if not 0 < scale * quant_max <= WIDER * allowed:
            return None
        scale = float(np.float32(scale))
        places = [round(root / scale) for root in roots]
        if any(abs(round(root / scale) - root / scale) > _EXACT for root in sigmoids):
            return None
        for operation, place in zip(linear, places, strict=True):
            factor, root = _line(operation)
            self.excess[operation.output] = factor * (root - place * scale)
        least, most = max(0, *(-place for place in places)), quant_max - max(0, *places)
        return scale, min(max(round(-low / scale), least), most)

    def _is_zero_below(self, name: str, readers: list[Found]) -> bool:
        """Return whether only a hard sigmoid and the product with it read a tensor: a hard swish."""
        if len(readers) != 2 or readers[1].kind != "multiply" or name in self.network.output_names:
            return False
        function, product = readers
        if {*self.network.readers.get(name, ())} - {*function.nodes, *product.nodes}:
            return False
        return self._is_hard_sigmoid(function) and {*product.inputs} == {function.inputs[0], function.output}


def _line(operation: Found) -> tuple[float, float]:
    """Return factor and root of a linear function, the same in all channels."""
    assert operation.factor is not None
    assert operation.offset is not None
    factor = float(operation.factor[0])
    return factor, -float(operation.offset[0]) / factor


def _before_convolutions(choice: Choice) -> set[str]:
    """Return the tensors from which convolutions are computed.

    These work on channels last, and behind the last one onnxruntime turns the layout back as soon as an operator reads
    a tensor twice, so that pooling becomes slow.
    """
    found: set[str] = set()
    for operation in reversed(choice.operations):
        if operation.is_convolution or operation.output in found:
            found.update(operation.inputs)
    return found
