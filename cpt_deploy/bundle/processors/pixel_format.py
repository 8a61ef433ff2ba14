"""The bytes of images that a model takes itself, with normalisation inside of its file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Layout = Literal["NHWC", "NCHW"]
Order = Literal["RGB", "BGR"]


@dataclass(frozen=True)
class PixelFormat:
    """How the bytes 0 to 255 of images lie in a model's input.

    Args:
        layout: Order of the dimensions: "NHWC" as images are decoded, or "NCHW".
        order: Order of three channels: "RGB", or "BGR" as OpenCV reads them.

    Raises:
        ValueError: If a field is none of these.
    """

    layout: Layout = "NHWC"
    order: Order = "RGB"

    def __post_init__(self) -> None:
        for value, known in ((self.layout, get_args(Layout)), (self.order, get_args(Order))):
            if value not in known:
                raise ValueError(f"Expected one of {', '.join(known)}, but got {value!r}")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of one image in the input."""
        return (height, width, channels) if self.layout == "NHWC" else (channels, height, width)

    def arranged(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return pixels (..., H, W, C), red first, as they lie in the input."""
        ordered = pixels[..., ::-1] if self.order == "BGR" else pixels
        return np.ascontiguousarray(ordered if self.layout == "NHWC" else np.moveaxis(ordered, -1, -3))

    def pixels(self, arranged: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return pixels (..., H, W, C), red first, from those of an input."""
        moved = arranged if self.layout == "NHWC" else np.moveaxis(arranged, -3, -1)
        return np.ascontiguousarray(moved[..., ::-1] if self.order == "BGR" else moved)

    def to_dict(self) -> dict[str, str]:
        """Return the fields as JSON values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "PixelFormat":
        """Create a format from the result of `to_dict`.

        Raises:
            ValueError: If a field is missing, unknown, or none of the known values.
        """
        if {*fields} != {"layout", "order"}:
            raise ValueError(f"Expected layout and order of pixels, but got {dict(fields)!r}")
        return cls(**fields)

    def __str__(self) -> str:
        return f"uint8 {self.layout} {self.order}"
