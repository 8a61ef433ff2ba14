"""A quantized tensor of an integer graph, as plain data (NumPy only)."""

from dataclasses import dataclass

import numpy as np

from cpt_deploy.errors import ConversionError


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """An activation: `x = (code − zero_point) · scale`, codes from 0, or from −2^(bits−1) if signed.

    Attributes:
        name: Unique in the graph; also the name of the uint8 or int8 tensor in the ONNX file.
        scale: Real step of one code; a value that float32 holds exactly.
        zero_point: Code of real zero.
        bits: 2 to 8.
        shape: Shape without the batch dimension; None where a size is free.
        signed: Whether codes are signed; the zero point is 0 then.
    """

    name: str
    scale: float
    zero_point: int
    bits: int
    shape: tuple[int | None, ...]
    signed: bool = False

    @property
    def channels(self) -> int:
        """The size of the first dimension after the batch.

        Raises:
            ConversionError: If the size is free.
        """
        if (size := self.shape[0]) is None:
            raise ConversionError(f"Expected channels of a known number, but those of {self.name!r} are free")
        return size

    @property
    def quant_min(self) -> int:
        """The minimum quantized value."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def quant_max(self) -> int:
        """The maximum quantized value."""
        return self.quant_min + int(2**self.bits - 1)

    @property
    def dtype(self) -> type[np.int8 | np.uint8]:
        """The NumPy type of the quantized values."""
        return np.int8 if self.signed else np.uint8
