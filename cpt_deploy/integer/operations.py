"""The operations of an integer graph and the quantized tensors between them, as plain data (NumPy only)."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.integer.tensors import QuantizedTensor

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]
Biases = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of an integer graph: reads tensors by name, computes one tensor."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class WeightedOperation(Operation):
    """An operation with weights; BatchNorm is folded into scales and bias.

    Attributes:
        codes: Weight codes as trained, int8, output channels first.
        shift: The executed weights are `codes · 2^shift`, so that they fill 8 bits. Products and sums are multiplied by
            a power of two, which loses nothing, and the bias is rounded that much more finely.
        scales: Scale of the executed weights of each output channel, float32 (O,).
        bias: int32 (O,) at scale `input scale · scales`.
        bits: Bits of the weight codes.
        source: Module path in the trained model.
    """

    codes: Codes
    shift: int
    scales: Scales
    bias: Biases
    bits: int
    source: str

    @property
    def executed_codes(self) -> Codes:
        """The integers that multiply activations, `codes · 2^shift`, int8."""
        return self.codes << np.int8(self.shift)


@dataclass(frozen=True, slots=True)
class Convolution(WeightedOperation):
    """Convolution of any number of spatial dimensions; `pads` as in ONNX: all begins, then all ends."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class FullyConnected(WeightedOperation):
    """Product of (..., I) with weights (O, I); the result is real if the output is no quantized tensor.

    Attributes:
        clamped_in_float: Whether an operator reads the real result that onnxruntime would fuse with the layer, in
            float, if it added the bias.
    """

    clamped_in_float: bool = False


@dataclass(frozen=True, slots=True)
class Recurrent(WeightedOperation):
    """The steps of a recurrent layer, see `quantization.modules.recurrent`.

    The inputs are real values: the products of the layer's inputs, (T, N, G·H), and its state, (N, H) each. The result
    is a tuple: the hidden states of all steps, (T, N, H), and the state after them. The weights multiply the hidden
    state, which is quantized in each step.

    Attributes:
        hidden: The quantized hidden state that each step reads, (T, N, H).
        cell: "lstm" or "gru".
        reverse: Whether the steps run from the last to the first.
    """

    hidden: str
    cell: Literal["lstm", "gru"]
    reverse: bool

    @property
    def product(self) -> str:
        """Name of the products of the hidden states, real values (T, N, G·H)."""
        return f"{self.hidden}_product"


def adds_real_bias(operation: WeightedOperation, source: QuantizedTensor) -> bool:
    """Return whether a layer with a real result adds its bias in float, after scaling its sums.

    Only for rows of unsigned integers is there a kernel that adds it to the integer sums.
    """
    fused = isinstance(operation, FullyConnected) and operation.clamped_in_float
    return fused or source.signed or len(source.shape) > 1


@dataclass(frozen=True, slots=True)
class Embed(WeightedOperation):
    """Real values of the rows of weights (V, D) at int64 indices of any shape; there is no bias."""


@dataclass(frozen=True, slots=True)
class Quantize(Operation):
    """Quantization of real values, of an input or of float operations."""


@dataclass(frozen=True, slots=True)
class ReadPixels(Operation):
    """Quantized values (N, C, H, W) of the bytes of images: normalisation and quantization in one table.

    Attributes:
        table: uint8 or int8 (C, 256), the quantized value of each byte in each channel.
        factor: float32 (C,); the real value of a byte v is about `v · factor + offset`.
        offset: float32 (C,).
        channels_last: Whether the bytes are (N, H, W, C).
        reversed: Whether their channels are in the reverse order of the table's.
    """

    table: NDArray[np.uint8 | np.int8]
    factor: NDArray[np.float32]
    offset: NDArray[np.float32]
    channels_last: bool
    reversed: bool

    @property
    def is_identity(self) -> bool:
        """Whether the bytes are the quantized values."""
        return bool((self.table == np.arange(256)).all())

    def is_affine(self, output: QuantizedTensor) -> bool:
        """Return whether float32 arithmetic gives the table: `rint((v · factor + offset) / scale) + zero point`."""
        real = np.arange(256, dtype=np.float32) * self.factor[:, None] + self.offset[:, None]
        codes = np.rint(real / np.float32(output.scale)) + output.zero_point
        return bool((np.clip(codes, output.quant_min, output.quant_max) == self.table).all())


@dataclass(frozen=True, slots=True)
class Constant(Operation):
    """A tensor of real values, integers or booleans that float operations read."""

    value: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Float(Operation):
    """An operation on real values by a PyTorch operator; quantized inputs are dequantized.

    Attributes:
        target: "aten.softmax.int", or "operator.mul" on sizes.
        arguments: JSON of the positional and the named arguments; `{"input": i}` is `inputs[i]`.
    """

    target: str
    arguments: str


@dataclass(frozen=True, slots=True)
class OnnxPart(Operation):
    """Float operators of an ONNX file as they stand there, executed by onnxruntime.

    Attributes:
        results: Names of all tensors that it computes; `output` is the first.
        codes: Positions of the inputs whose quantized values it reads, for their shape; others are dequantized.
        content: The operators as a serialized ONNX model, uint8; its inputs and outputs are in the order of `inputs`
            and `results`, and have the names of the results.
    """

    results: tuple[str, ...]
    codes: tuple[int, ...]
    content: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Movement(Operation):
    """An ONNX operator that moves, repeats or selects quantized values: Resize, Gather, MaxPool, Reshape, ...

    The first input is quantized; others are results of float operations, such as shapes.

    Attributes:
        content: The operator as a serialized ONNX model on quantized values, uint8; its inputs are in the order of
            `inputs`.
    """

    content: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Add(Operation):
    """Sum of two tensors of one shape; an output zero point of 0 implements a ReLU after it."""


@dataclass(frozen=True, slots=True)
class Multiply(Operation):
    """Product of two tensors that broadcast."""


@dataclass(frozen=True, slots=True)
class Concatenate(Operation):
    """Concatenation along an axis (counted with the batch dimension)."""

    axis: int


@dataclass(frozen=True, slots=True)
class GlobalAverage(Operation):
    """Mean over all spatial positions, (N, C, H, W) → (N, C, 1, 1)."""


@dataclass(frozen=True, slots=True)
class Lookup(Operation):
    """An elementwise function, as a table of 2^8 quantized outputs.

    Attributes:
        function: The real function, as an ONNX operator.
        parameters: Its parameters, in the operator's order.
        table: uint8 or int8 (256,), for quantized inputs in ascending order.
    """

    function: str
    parameters: tuple[float, ...]
    table: NDArray[np.uint8 | np.int8]


@dataclass(frozen=True, slots=True)
class Reinterpret(Operation):
    """A linear function without arithmetic: the same integers, clipped, with other quantization parameters.

    With the scale `a · s` and the zero point `z − b / (a · s)`, the integers of `x` are those of `a · x + b`.

    Attributes:
        low: Smallest integer of the result.
        high: Largest integer of the result.
    """

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class MaxPool(Operation):
    """Maximum over windows; padding is never the maximum. `pads` as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil: bool


@dataclass(frozen=True, slots=True)
class Pad(Operation):
    """Padding with real zeros or with values of the tensor.

    Attributes:
        mode: "constant", "reflect", "replicate" or "circular", as in PyTorch.
        pads: As in ONNX, the batch dimension included: all begins, then all ends; negative widths crop.
    """

    mode: str
    pads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshape(Operation):
    """New shape of the non-batch dimensions, which are those of the output tensor.

    Attributes:
        sizes: Empty unless some of them are free; then all sizes, with the batch, as in ONNX: 0 is the size of the same
            dimension of the input, and -1 is inferred.
    """

    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Transpose(Operation):
    """Permutation of all dimensions, the batch dimension included and first."""

    permutation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice(Operation):
    """A range of one axis (counted with the batch dimension); an end below 0 is counted from the end of the axis."""

    axis: int
    start: int
    end: int


OPERATIONS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (
        Convolution, FullyConnected, Add, Multiply, Concatenate, GlobalAverage, Lookup, MaxPool, Pad, Reshape,
        Transpose, Slice, Embed, Recurrent, Quantize, ReadPixels, Constant, Float, OnnxPart, Movement, Reinterpret,
    )
}  # fmt: skip
