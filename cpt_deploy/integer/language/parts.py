"""Parts of integer language models: tables of rows, and integer products between floats."""

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
        codes: Quantized input of each product, uint8 (..., I).
        sums: Integer sums of each product, int32 (..., O).
    """

    codes: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    sums: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuantizationParameters:
    """Unsigned quantization of an activation: `x ≈ (code − zero_point) · scale`, codes in [0, quant_max].

    Args:
        scale: Scale, a float32 value.
        zero_point: Integer in [0, quant_max].
        quant_max: Maximum quantized value, at most 255.
    """

    scale: float
    zero_point: int
    quant_max: int

    def encode(self, x: Floats) -> npt.NDArray[np.uint8]:
        """Quantize as ONNX QuantizeLinear and Clip do; the shape is kept."""
        codes = np.rint(x / np.float32(self.scale)) + np.float32(self.zero_point)
        return np.asarray(np.clip(codes, 0, self.quant_max), np.uint8)


@dataclass(frozen=True, eq=False)
class IntegerTable:
    """An embedding: quantized rows, with one scale per row.

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
        """Return the rows, float32 (..., E), of tokens (...)."""
        return self.codes[tokens].astype(np.float32) * self.scales[tokens][..., None]

    def arrays(self) -> Arrays:
        """Return its tensors by name."""
        return {f"{self.name}.weight": self.codes, f"{self.name}.weight_scale": self.scales}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerTable":
        """Rebuild it from the result of `arrays`.

        Raises:
            KeyError: If something is missing.
        """
        return cls(name, arrays[f"{name}.weight"], arrays[f"{name}.weight_scale"])


@dataclass(frozen=True, eq=False)
class IntegerLinear:
    """A Linear in integers, between floats: `f32(Σ (q − z)·w) · f32(s·s_w) + b`.

    Args:
        name: Its module path.
        codes: int8 (O, I).
        scales: float32 (O,).
        bias: float32 (O,), or none.
        qparams: Quantization parameters of its input.
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
        """Whether sums of two products can exceed 16 bits, as processors without VNNI add them."""
        return pair_can_saturate(self.codes, self.qparams.quant_max.bit_length())

    @property
    def factors(self) -> Floats:
        """Factors from integer sums to real values, float32 (O,)."""
        return np.float32(self.qparams.scale) * self.scales

    def accumulate(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """Return the exact integer sums of products, (..., O), for quantized inputs (..., I)."""
        centred = codes.astype(np.int32) - self.qparams.zero_point
        # Float products are fast, and exact while the sums stay below 2^24 (float32) or 2^53 (float64).
        greatest = 255 * int(np.abs(self.codes.astype(np.int64)).sum(axis=1).max(initial=0))
        kind: type[np.float32 | np.float64] = np.float32 if greatest < _EXACT_FLOAT32 else np.float64
        sums = np.matmul(centred.astype(kind), self.codes.astype(kind).T)
        return np.asarray(sums, np.int32)

    def scaled(self, sums: npt.NDArray[np.int32]) -> Floats:
        """Return the real output for integer sums."""
        products = sums.astype(np.float32) * self.factors
        return products if self.bias is None else products + self.bias

    def __call__(self, x: Floats, trace: Trace | None = None) -> Floats:
        """Return the output, float32 (..., O), for an input, float32 (..., I); the trace records the integers."""
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
        """Return its metadata as JSON types."""
        return {
            "name": self.name,
            "scale": self.qparams.scale,
            "zero_point": self.qparams.zero_point,
            "levels": self.qparams.quant_max,
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerLinear":
        """Rebuild it from the results of `describe` and `arrays`.

        Raises:
            KeyError: If something is missing.
        """
        name = description["name"]
        qparams = QuantizationParameters(
            float(description["scale"]), int(description["zero_point"]), int(description["levels"])
        )
        return cls(name, arrays[f"{name}.weight"], arrays[f"{name}.weight_scale"], arrays.get(f"{name}.bias"), qparams)


def bits_of(codes: Codes) -> int:
    """Return the minimum number of bits, 2 or more, that holds these codes: within ±(2^(bits − 1) − 1)."""
    return max(2, 1 + int(np.abs(codes.astype(np.int16)).max(initial=0)).bit_length())


def arrays_of(parts: Iterable[IntegerTable | IntegerLinear]) -> Arrays:
    """Return the tensors of all parts by name."""
    return {name: array for part in parts for name, array in part.arrays().items()}


def frozen_table(name: str, layer: object) -> IntegerTable:
    """Freeze an embedding at the present bits."""
    assert isinstance(layer, QuantizedEmbedding)
    codes, scales = _weight(layer)
    return IntegerTable(name, codes, scales)


def frozen_linear(name: str, layer: QuantizedLayer, quantizer: ActivationQuantizer) -> IntegerLinear:
    """Freeze a Linear at the present bits, with the quantization parameters of its input from the trained range.

    Raises:
        ConversionError: If the input's range was never observed, its bits are more than 8, or a sum could exceed int32.
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
    """Freeze a Linear that quantizes its input, under the name of that module; see `frozen_linear`."""
    assert isinstance(module, InputQuantizedLinear)
    return frozen_linear(f"{name}.layer", module.layer, module.quantizer)


def _weight(layer: QuantizedLayer) -> tuple[Codes, Floats]:
    weight = layer.channel_weight.detach().float()
    quant_max = layer.limited_quant_max(layer.precision.weight_quant_max_of(layer.index, layer.role), weight)
    if float(quant_max.max()) > symmetric_quant_max(8):
        raise ConversionError(f"Expected weights of at most 8 bits, but got codes up to {int(quant_max.max())}")
    codes, scales = quantize_weight(weight, quant_max)
    return codes.cpu().numpy().astype(np.int8), scales.cpu().float().numpy().reshape(-1).copy()
