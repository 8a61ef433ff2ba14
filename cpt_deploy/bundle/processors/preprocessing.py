"""Convert an image to the input of a model, in the same way in evaluation, export, prediction and serving."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpt_deploy.bundle.processors.images import to_eight_bit
from cpt_deploy.bundle.processors.resizing import scale_window, scaled_pixels

Interpolation = Literal["bilinear", "bicubic", "nearest"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input: channels, resize, centre crop, normalisation.

    Args:
        channels: 1 (gray, ITU-R 601 luma of colour images) or 3 (RGB; gray is repeated).
        size: Height and width of the model's input, in pixels.
        mean: Per channel, subtracted after scaling the pixels to 0..1.
        std: Per channel, the divisor after that.
        resize: The length to which the shorter side is scaled before the crop, in pixels, at least `max(size)`.
            `None` scales to the smallest size that covers `size`; an image of that size is unchanged.
        interpolation: The interpolation of pixels (antialiased when shrinking, except for "nearest").
        crop: Position of the crop.

    Raises:
        ValueError: If a field is out of range or the fields are inconsistent.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    crop: Literal["center"] = "center"

    def __post_init__(self) -> None:
        if self.channels not in {1, 3}:
            raise ValueError(f"Expected channels to be 1 or 3, but got {self.channels}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"Expected size to be two positive numbers (height, width), but got {self.size}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"Expected mean and std to have {self.channels} values each, but got {self.mean} and {self.std}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and min(self.std) > 0):
            raise ValueError(
                f"Expected a finite mean and a finite, positive std, but got mean {self.mean}, std {self.std}"
            )
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"Expected resize to be at least max(size) = {max(self.size)}, but got {self.resize}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"Expected interpolation to be one of {', '.join(_RESAMPLING)}, but got {self.interpolation!r}"
            )
        if self.crop != "center":
            raise ValueError(f"Expected crop to be 'center', but got {self.crop!r}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one input."""
        return (self.channels, *self.size)

    def apply(self, image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Convert one image to the model's input.

        Args:
            image: A loaded Pillow image of any mode, or uint8 pixels (H, W), (H, W, 1) or (H, W, 3), of any size.

        Returns:
            The normalised input, float32 (C, H, W).
        """
        return self.normalize(self.fit(image))

    def fit(self, image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Convert the channels, scale and crop, without normalising; augmentation starts from the result.

        Returns:
            Pixels, uint8 (H, W, C) with H, W = `size`.

        Raises:
            ImageError: If the mode of a Pillow image cannot be reduced to 8 bits.
        """
        source = to_eight_bit(image) if isinstance(image, Image.Image) else _from_array(image)
        mode = "L" if self.channels == 1 else "RGB"
        if source.mode != mode:
            source = source.convert(mode)
        width, height = self._scaled_size(*source.size)
        # As in torchvision's CenterCrop: Python's round, which rounds half to even.
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        window = left, top, left + self.size[1], top + self.size[0]
        pixels = np.asarray(scale_window(source, (width, height), window, _RESAMPLING[self.interpolation]))
        return np.array(pixels.reshape(*self.size, self.channels))

    def scaled_pixels(self, width: int, height: int) -> int:
        """Return the number of pixels that `fit` computes for an image of the given size, excluding decoding."""
        return scaled_pixels(self._scaled_size(width, height), self.size)

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Normalise pixels: `(pixels / 255 - mean) / std`, computed in float64 and rounded once.

        Args:
            pixels: uint8 (..., H, W, C) from `fit`, one image or a batch.

        Returns:
            float32 (..., C, H, W).
        """
        if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != self.channels:
            raise ValueError(
                f"Expected pixels to be uint8 (..., H, W, {self.channels}), but got {pixels.dtype} {pixels.shape}"
            )
        *batch, height, width, _ = pixels.shape
        out = np.empty((*batch, self.channels, height, width), np.float32)
        for channel in range(self.channels):
            np.take(self._table[channel], pixels[..., channel], out=out[..., channel, :, :])
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types; `from_dict` is the inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Create a preprocessing from the result of `to_dict`.

        Raises:
            ValueError: If a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            values = dict(fields)
            for key, convert in (("size", int), ("mean", float), ("std", float)):
                values[key] = tuple(convert(item) for item in values[key])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"Expected the fields of a preprocessing, but got {dict(fields)!r}") from error

    def to_huggingface(self) -> dict[str, Any]:
        """Return the keys of a Hugging Face `preprocessor_config.json` (`BitImageProcessor`)."""
        height, width = self.size
        return {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": self.channels == 3,
            "do_resize": True,
            "size": {"shortest_edge": self.resize or max(self.size)},
            "resample": int(_RESAMPLING[self.interpolation]),
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def to_timm(self) -> dict[str, Any]:
        """Return the keys of timm's `pretrained_cfg` on preprocessing."""
        return {
            "input_size": list(self.input_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": max(self.size) / (self.resize or max(self.size)),
            "crop_mode": self.crop,
            "fixed_input_size": True,
        }

    @cached_property
    def _table(self) -> npt.NDArray[np.float32]:
        """The normalised value of each of the 256 pixel values, float32 (C, 256)."""
        mean, std = np.asarray(self.mean)[:, None], np.asarray(self.std)[:, None]
        table: npt.NDArray[np.float32] = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
        return table

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after scaling; the longer side is rounded down, as in torchvision's Resize."""
        if self.resize is not None:
            if width <= height:
                return self.resize, max(int(self.resize * height / width), self.size[0])
            return max(int(self.resize * width / height), self.size[1]), self.resize
        target_height, target_width = self.size
        if target_width * height >= target_height * width:
            return target_width, max(target_width * height // width, target_height)
        return max(target_height * width // height, target_width), target_height


def _from_array(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"Expected pixels to be uint8, but got {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] != 3) or 0 in pixels.shape:
        raise ValueError(f"Expected pixels of shape (H, W), (H, W, 1) or (H, W, 3), but got {pixels.shape}")
    return Image.fromarray(pixels)
