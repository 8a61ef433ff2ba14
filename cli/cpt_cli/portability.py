"""Portable bundles on the terminal: what they give up, and what a validation says of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_deploy.errors import ValidationFailedError

if TYPE_CHECKING:
    from cpt_deploy.bundle.opened import OpenedBundle
    from cpt_deploy.quantization import QuantizedLanguageModel, QuantizedModel, WeightBits
    from cpt_deploy.validation import LayerSaturation, Portability

WITHOUT_VNNI = "on x86 processors without VNNI"


def note_reduced(model: "QuantizedModel | QuantizedLanguageModel", weight_bits: "WeightBits") -> None:
    """Say which layers lose range so that no sum of theirs saturates or overflows.

    Args:
        model: The model.
        weight_bits: Bits of the cycling weights that will be exported, or of each layer by name.
    """
    from cpt_deploy.quantization import reduced_layers

    reduced = reduced_layers(model, weight_bits)
    if reduced:
        channels = sum(layer.reduced_channels for layer in reduced)
        out.note(
            f"weights have a smaller range in {channels} channels of {len(reduced)} layers, so that sums are exact on "
            f"any processor; the smallest is ±{min(layer.least_levels for layer in reduced)} instead of ±127"
        )


def show_portability(bundle: "OpenedBundle") -> dict[str, bool]:
    """Print of a portable bundle that it cannot saturate, which its codes alone tell.

    Raises:
        ValidationFailedError: If it can, or if any bundle's sums could leave int32.
    """
    from cpt_deploy.validation import bundle_accumulators, bundle_portability, bundle_saturation, overflow_reasons

    overflows = overflow_reasons(bundle_accumulators(bundle))
    if overflows:
        raise ValidationFailedError("; ".join(overflows))
    portability = bundle_portability(bundle)
    if portability is None:
        return {}
    layers = bundle_saturation(bundle)
    line = f"{WITHOUT_VNNI}: {saturation_line(layers, portability)}"
    if any(layer.possible for layer in layers):
        raise ValidationFailedError(f"Expected a portable bundle to saturate nowhere, but {line}")
    out.line(line)
    return {"saturation_possible": False}


def saturation_line(
    layers: "Sequence[LayerSaturation]", portability: "Portability | None", *, saturates_here: bool | None = None
) -> str:
    """Return what happens on x86 processors without VNNI.

    Args:
        layers: The verdict on each layer of a bundle.
        portability: What the bundle gave up, if it was exported to be portable.
        saturates_here: Whether this processor is one of them; None if unknown.
    """
    hazard = sum(layer.possible for layer in layers)
    if hazard:
        here = {True: ", as on this one", False: ", unlike this one", None: ""}[saturates_here]
        return (
            f"{hazard} of {len(layers)} layers need onnxruntime's slower exact kernels{here} "
            "(exported with --native; without it none would)"
        )
    if portability is None:
        return "nothing can saturate"
    given_up = f"smaller range in {portability.channels} channels of {len(portability.reduced)} layers"
    return f"nothing can saturate (portable: {given_up if portability.reduced else 'no range had to be reduced'})"
