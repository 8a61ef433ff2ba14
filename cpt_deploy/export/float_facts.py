"""Describe the float parts of a network for its bundle."""

from typing import Any

from cpt_deploy.integer.float_costs import FloatCosts

_NOTE = (
    "The layers under weights run on integers. The operators here run in float32 between them: their inputs are "
    "dequantized, and their results are quantized at the entry of the next layer. In graph they are PyTorch's."
)


def describe_floats(floats: FloatCosts, reason: str | None) -> dict[str, Any]:
    """Return the entry `float_parts` of `quantization.json`; the reason is that of the conversion."""
    return {
        "reason": reason or "",
        "operators": floats.operators,
        "integer_macs": floats.integer_macs,
        "float_macs": floats.float_macs,
        "integer_share_of_macs": round(floats.integer_share, 6),
        "note": _NOTE,
    }


def float_facts(floats: FloatCosts, reason: str | None) -> dict[str, str]:
    """Return the lines about float parts of `config.json` and the model card."""
    return {
        "computed_in_float": ", ".join(f"{count} {name}" for name, count in floats.operators.items())
        or "movements only",
        "why_in_float": reason or "",
        "MACs_on_integers": f"{100 * floats.integer_share:.4g} %",
    }
