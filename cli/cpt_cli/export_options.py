"""Options of `cpt export`: their choices, and those for float models trained elsewhere checked and parsed."""

from collections.abc import Mapping
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.bundle.processors.pixel_format import PixelFormat


class InputKind(StrEnum):
    """What a bundle's files take besides normalised images."""

    UINT8 = "uint8"


class Interpolation(StrEnum):
    """How images are resized."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    NEAREST = "nearest"


class Layout(StrEnum):
    """The layout of the bytes of images."""

    NHWC = "NHWC"
    NCHW = "NCHW"


class Channels(StrEnum):
    """Channels of images: their order in bytes, or their number."""

    RGB = "RGB"
    BGR = "BGR"
    ONE = "1"
    THREE = "3"


class Activations(StrEnum):
    """The quantization scheme of activations."""

    AFFINE = "affine"
    SYMMETRIC = "symmetric"


class Checkpoint(StrEnum):
    """The state of a run that is exported."""

    LAST = "last"
    BEST = "best"


def check_origin(
    run: Path | None, source: Path | None, only_from: Mapping[str, object], only_run: Mapping[str, object]
) -> None:
    """Check that either a run or a file with a data set is given, without options of the other.

    Args:
        run: The run.
        source: The file of a float model.
        only_from: Values of the options that need a file, None if not given.
        only_run: Values of the options that need a run, likewise.

    Raises:
        UsageError: Otherwise.
    """
    if (run is None) == (source is None):
        raise UsageError(
            f"Expected either a run or --from, but got {'none' if run is None else 'both'}",
            hint="cpt export runs/NAME, or cpt export --from model.onnx --data NAME",
        )
    for option, value in (only_from if source is None else only_run).items():
        if value is not None:
            needed, got = ("--from", "a run") if source is None else ("a run", "--from")
            raise UsageError(f"Expected {option} with {needed} only, but got it with {got}")
    if source is not None and only_from["--data"] is None:
        raise UsageError(
            "Expected --data with --from, to calibrate on, but got none",
            hint="a folder of images by class, an .npz file with an array for each input, or a name of cpt datasets",
        )


def parsed_pixels(kind: str | None, layout: str | None, order: str | None) -> "PixelFormat | None":
    """Return the bytes of `--input uint8`, `--layout` and `--channels`; None without the first.

    Raises:
        UsageError: If the others are given without it.
    """
    if kind is not None:
        from cpt_deploy.bundle.processors.pixel_format import PixelFormat

        return PixelFormat(layout=layout or "NHWC", order=order or "RGB")  # type: ignore[arg-type]
    for option, value in (("--layout", layout), ("--channels RGB or BGR", order)):
        if value is not None:
            raise UsageError(f"Expected {option} with --input uint8 only, but got it without")
    return None


def parsed_size(text: str | None) -> tuple[int, int] | None:
    """Return the height and width of `--input-size`."""
    if text is None:
        return None
    sizes = text.lower().split("x")
    if len(sizes) > 2 or not all(size.isascii() and size.isdigit() and 0 < int(size) <= 65536 for size in sizes):
        raise UsageError(f"Expected --input-size as 32 or 224x224, but got {text!r}")
    return int(sizes[0]), int(sizes[-1])


def parsed_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of `--mean` or `--std`, one per channel."""
    if text is None:
        return None
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = (float("nan"),)
    if not all(isfinite(value) and (value > 0 or option != "--std") for value in values):
        raise UsageError(f"Expected {option} to be numbers such as 0.485,0.456,0.406, but got {text!r}")
    return values
