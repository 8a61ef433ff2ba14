"""The forms in which a bundle holds its model: always as ONNX and as plain tensors, the others where asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpt_deploy.bundle.layout import ONNX_FILE, PT2_FILE, TENSORS_FILE, TORCHSCRIPT_FILE
from cpt_deploy.errors import UsageError
from cpt_deploy.registry import nearest_names


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """One form of a model.

    Attributes:
        file: Its file in a bundle.
        title: What the form is called.
        needs: What a program needs to use it.
        holds: What it holds, in a few words.
        always: Whether each bundle has it.
    """

    file: str
    title: str
    needs: str
    holds: str
    always: bool = False


FORMATS: dict[str, ModelFormat] = {
    "onnx": ModelFormat(ONNX_FILE, "ONNX", "onnxruntime", "integer kernels: what is served", always=True),
    "safetensors": ModelFormat(
        TENSORS_FILE, "safetensors", "any reader", "codes, scales and biases without operations", always=True
    ),
    "torchscript": ModelFormat(TORCHSCRIPT_FILE, "TorchScript", "torch", "the same integers in float32 arithmetic"),
    "pt2": ModelFormat(PT2_FILE, "torch.export program", "torch", "the same integers in float32 arithmetic"),
}
"""Every format by its name, in the order in which they are listed."""


def chosen_formats(words: Sequence[str]) -> tuple[str, ...]:
    """Return the formats that a user asked for, beside those that each bundle has, in the order of `FORMATS`.

    Args:
        words: Names, or several of them joined by commas.

    Raises:
        UsageError: If there is no format of a name.
    """
    names = [name.strip() for word in words for name in word.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"Expected a known format, but got {name!r}", hint=nearest_names(name, list(FORMATS)))
    return tuple(name for name, known in FORMATS.items() if name in names or known.always)
