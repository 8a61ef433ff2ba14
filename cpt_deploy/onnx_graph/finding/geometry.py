"""Strides, padding and dilation of an ONNX convolution."""

from collections.abc import Mapping, Sequence
from typing import Any


def convolution_geometry(
    kind: str, attributes: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]
) -> dict[str, Any] | None:
    """Return strides, pads, dilations and groups of a convolution, and output padding of a transposed one.

    None if the padding depends on a size that may be another one in another run.
    """
    dimensions = len(kernel)
    ones = [1] * dimensions
    strides, dilations = (attributes.get(key) or ones for key in ("strides", "dilations"))
    pads = attributes.get("pads") or [0] * 2 * dimensions
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        if kind != "Conv" or any(stride != 1 for stride in strides):
            return None  # `with_known_pads` resolves it where sizes are fixed
        total = [dilation * (k - 1) for k, dilation in zip(kernel, dilations, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if automatic == "SAME_UPPER" else [*large, *small]
    elif automatic == "VALID":
        pads = [0] * 2 * dimensions
    geometry = {"strides": strides, "dilations": dilations, "pads": pads, "groups": attributes.get("group", 1)}
    if kind == "Conv":
        return geometry if min(pads) >= 0 else None
    begins, ends = pads[:dimensions], pads[dimensions:]
    extra = attributes.get("output_padding") or [0] * dimensions
    if attributes.get("output_shape") or min(pads) < 0:
        return None
    # a wider end of the padding cuts outputs, as less output padding would
    output_padding = [more + begin - end for more, begin, end in zip(extra, begins, ends, strict=True)]
    if min(output_padding) < 0:
        return None
    return {**geometry, "pads": begins, "output_padding": output_padding}
