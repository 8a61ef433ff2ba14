"""Find what in a quantized file keeps layers in float, changes results, or saturates, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpt_deploy.validation.onnx_files.around import Around
from cpt_deploy.validation.onnx_files.layers import Layer
from cpt_deploy.validation.onnx_files.rules import RULES

_PER_CHANNEL = 13
"""The first opset with an axis for QuantizeLinear."""


@dataclass(frozen=True)
class Finding:
    """Something to change in a file.

    Args:
        rule: Its kind, for programs.
        what: What was found and its effect.
        change: What to do about it.
        where: Names of the operators or tensors.
    """

    rule: str
    what: str
    change: str
    where: tuple[str, ...]


def find(around: Around, layers: Sequence[Layer], opset: int, *, saturates: bool) -> tuple[Finding, ...]:
    """Return the findings of a file.

    Args:
        around: The file and the graph that onnxruntime executes.
        layers: Its layers.
        opset: The version of ONNX's operators in the file.
        saturates: Whether this processor adds products in 16 bits.
    """
    here = "such as this one, " if saturates else ""
    found = [
        Finding(rule.name, rule.what, rule.change, names)
        for rule in RULES
        if (names := tuple(dict.fromkeys(rule.find(around))))
    ]
    pairs = tuple(layer.name for layer in layers if layer.saturates)
    if pairs:
        found.append(
            Finding(
                "saturation",
                "two products of uint8 and int8 can exceed 16 bits: on x86 processors without VNNI, "
                f"{here}onnxruntime's default kernels saturate silently, and results are wrong",
                "quantize weights to 7 bits (onnxruntime: reduce_range=True), or to uint8; cpt serve and cpt validate "
                "use exact kernels there, other programs have to set session.x64quantprecision=1",
                pairs,
            )
        )
    sums = tuple(layer.name for layer in layers if layer.overflows)
    if sums:
        found.append(
            Finding(
                "overflow",
                "sums of products can exceed int32",
                "reduce the range of the weights or the bias of these layers",
                sums,
            )
        )
    quantizers = tuple(each.node.name for each in around.quantizers())
    if opset < _PER_CHANNEL and quantizers:
        found.append(
            Finding(
                "opset",
                f"the file states opset {opset}, which has no scales per channel, so that weights lose accuracy",
                f"convert the float model to opset {_PER_CHANNEL} or later, then quantize weights per channel",
                quantizers,
            )
        )
    return tuple(found)
