"""What integer language models are made of: tables of rows, and products of codes between floats."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.accumulators import check_sum, pair_can_saturate
from cpt_deploy.precision.accumulators import worst_sums
from cpt_deploy.quantization.language import InputQuantizedLinear
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding, QuantizedLayer
from cpt_deploy.quantization.numerics.affine import quantize_weight, symmetric_quant_max

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Integers = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

_EXACT_FLOAT32 = 2**24


@dataclass(eq=False)
class Trace:
    """The integers of one call, by the names of `IntegerLinear`.

    Args:
        codes: What each product reads, uint8 (..., I).
        sums: What each product gives, int32 (..., O).
    """

    codes: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    sums: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuantizationParameters:
    """Unsigned codes of an activation: `x ≈ (code − zero_point) · scale`, codes in [0, levels].

    Args:
        scale: A float32's value.
        zero_point: Integer in [0, levels].
        quant_max: Greatest code, at most 255.
    """

    scale: float
    zero_point: int
    quant_max: int

    def encode(self, x: Floats) -> npt.NDArray[np.uint8]:
        """Return codes as ONNX QuantizeLinear and Clip define them, same shape."""
        codes = np.rint(x / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(codes, 0, self.quant_max), np.uint8)


@dataclass(frozen=True, eq=False)
class IntegerTable:
    """An embedding: rows of codes, each with a scale of its own.

    Args:
        name: Its module path.
        codes: int8 (V, E).
        scales: float32 (V,).
    """

    name: str
    codes: Codes
    scales: Floats

    @property
    def bits(self) -> int:
        """Bits of the codes."""
        return bits_of(self.codes)

    def __call__(self, tokens: npt.NDArray[np.int64]) -> Floats:
        """Return rows, float32 (..., E), of tokens (...)."""
        return self.codes[tokens].astype(np.float32) * self.scales[tokens][..., None]

    def arrays(self) -> Arrays:
        """Return its tensors by name."""
        return {f"{self.name}.weight": self.codes, f"{self.name}.weight_scale": self.scales}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerTable":
        """Read what `arrays` gave.

        Raises:
            KeyError: If something is missing.
        """
        return cls(name, arrays[f"{name}.weight"], arrays[f"{name}.weight_scale"])


@dataclass(frozen=True, eq=False)
class IntegerLinear:
    """A Linear on codes, between floats: `f32(Σ (q − z)·w) · f32(s·s_w) + b`.

    Args:
        name: Its module path.
        codes: int8 (O, I).
        scales: float32 (O,).
        bias: float32 (O,), or none.
        qparams: Of its input.
    """

    name: str
    codes: Codes
    scales: Floats
    bias: Floats | None
    qparams: QuantizationParameters

    @property
    def bits(self) -> int:
        """Bits of the codes."""
        return bits_of(self.codes)

    @property
    def can_saturate(self) -> bool:
        """Whether two products could exceed 16 bits where a processor without VNNI adds them, see `pairs`."""
        return pair_can_saturate(self.codes, self.qparams.quant_max.bit_length())

    @property
    def factors(self) -> Floats:
        """What the integers are multiplied by, float32 (O,)."""
        return np.float32(self.qparams.scale) * self.scales

    def accumulate(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """Return the integer sums of products, (..., O), of codes (..., I); exact."""
        centred = codes.astype(np.int32) - self.qparams.zero_point
        # Floats hold the sums exactly as long as these stay below 2^24, or 2^53, and are multiplied fast.
        greatest = 255 * int(np.abs(self.codes.astype(np.int64)).sum(axis=1).max(initial=0))
        kind: type[np.float32 | np.float64] = np.float32 if greatest < _EXACT_FLOAT32 else np.float64
        sums = np.matmul(centred.astype(kind), self.codes.astype(kind).T)
        return np.asarray(sums, np.int32)

    def scaled(self, sums: npt.NDArray[np.int32]) -> Floats:
        """Return the output of integer sums."""
        products = sums.astype(np.float32) * self.factors
        return products if self.bias is None else products + self.bias

    def __call__(self, x: Floats, trace: Trace | None = None) -> Floats:
        """Return the output, float32 (..., O), of an input, float32 (..., I); the trace gets the integers."""
        codes = self.qparams.encode(x)
        sums = self.accumulate(codes)
        if trace is not None:
            trace.codes[self.name], trace.sums[self.name] = codes, sums
        return self.scaled(sums)

    def arrays(self) -> Arrays:
        """Return its tensors by name."""
        arrays: Arrays = {f"{self.name}.weight": self.codes, f"{self.name}.weight_scale": self.scales}
        return arrays if self.bias is None else {**arrays, f"{self.name}.bias": self.bias}

    def describe(self) -> dict[str, Any]:
        """Return what the numbers mean, as JSON types."""
        return {
            "name": self.name,
            "scale": self.qparams.scale,
            "zero_point": self.qparams.zero_point,
            "levels": self.qparams.quant_max,
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerLinear":
        """Read what `describe` and `arrays` gave.

        Raises:
            KeyError: If something is missing.
        """
        name = description["name"]
        qparams = QuantizationParameters(
            float(description["scale"]), int(description["zero_point"]), int(description["levels"])
        )
        return cls(name, arrays[f"{name}.weight"], arrays[f"{name}.weight_scale"], arrays.get(f"{name}.bias"), qparams)


def bits_of(codes: Codes) -> int:
    """Return the least bits, 2 or more, whose symmetric codes these are: within ±(2^(bits − 1) − 1)."""
    return max(2, 1 + int(np.abs(codes.astype(np.int16)).max(initial=0)).bit_length())


def arrays_of(parts: Iterable[IntegerTable | IntegerLinear]) -> Arrays:
    """Return the tensors of all parts by name."""
    return {name: array for part in parts for name, array in part.arrays().items()}


def frozen_table(name: str, layer: object) -> IntegerTable:
    """Return an embedding's codes at the present bits."""
    assert isinstance(layer, QuantizedEmbedding)
    codes, scales = _weight(layer)
    return IntegerTable(name, codes, scales)


def frozen_linear(name: str, layer: QuantizedLayer, quantizer: ActivationQuantizer) -> IntegerLinear:
    """Return a Linear's codes at the present bits, and the grid of its input in the range that training kept.

    Raises:
        ConversionError: If the input's range was never observed or has more codes than a byte, or a sum could leave
            int32.
    """
    codes, scales = _weight(layer)
    qparams = quantizer.kept_qparams()
    quant_max = int(qparams.quant_max)
    if quant_max > 255:
        raise ConversionError(f"Expected activations of at most 8 bits, but {name} has {quant_max + 1} codes")
    if int(quantizer.batches) == 0:
        raise ConversionError(f"Expected a model whose ranges were observed, but {name} has seen no batch")
    sums = worst_sums(codes, quant_max=quant_max, zero_point=int(qparams.zero_point))
    check_sum(name, int(sums.max(initial=0)))
    bias = None if layer.bias is None else layer.bias.detach().cpu().float().numpy().copy()
    return IntegerLinear(
        name, codes, scales, bias, QuantizationParameters(float(qparams.scale), int(qparams.zero_point), quant_max)
    )


def frozen_product(name: str, module: object) -> IntegerLinear:
    """Return a Linear that quantizes its own input, by the name of that module; see `frozen_linear`."""
    assert isinstance(module, InputQuantizedLinear)
    return frozen_linear(f"{name}.layer", module.layer, module.quantizer)


def _weight(layer: QuantizedLayer) -> tuple[Codes, Floats]:
    weight = layer.channel_weight.detach().float()
    quant_max = layer.limited_quant_max(layer.precision.weight_quant_max_of(layer.index, layer.role), weight)
    if float(quant_max.max()) > symmetric_quant_max(8):
        raise ConversionError(f"Expected weights of at most 8 bits, but got codes up to {int(quant_max.max())}")
    codes, scales = quantize_weight(weight, quant_max)
    return codes.cpu().numpy().astype(np.int8), scales.cpu().float().numpy().reshape(-1).copy()
