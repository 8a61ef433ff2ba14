"""The model formats of a bundle: ONNX and plain tensors always, the others on request."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpt_deploy.bundle.layout import ONNX_FILE, PT2_FILE, TENSORS_FILE, TORCHSCRIPT_FILE
from cpt_deploy.errors import UsageError
from cpt_deploy.registry import nearest_names


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """One format of a model.

    Attributes:
        file: Its file in a bundle.
        title: Its name for people.
        needs: The software that is needed to use it.
        holds: A short description of its content.
        always: Whether every bundle has it.
    """

    file: str
    title: str
    needs: str
    holds: str
    always: bool = False


FORMATS: dict[str, ModelFormat] = {
    "onnx": ModelFormat(ONNX_FILE, "ONNX", "onnxruntime", "integer kernels: the served model", always=True),
    "safetensors": ModelFormat(
        TENSORS_FILE, "safetensors", "any reader", "integer weights, scales and biases without operations", always=True
    ),
    "torchscript": ModelFormat(TORCHSCRIPT_FILE, "TorchScript", "torch", "the same integers in float32 arithmetic"),
    "pt2": ModelFormat(PT2_FILE, "torch.export program", "torch", "the same integers in float32 arithmetic"),
}
"""All formats by name, in the order of listings."""


def chosen_formats(words: Sequence[str]) -> tuple[str, ...]:
    """Return the requested formats and those that every bundle has, in the order of `FORMATS`.

    Args:
        words: Names; each word may be several names joined by commas.

    Raises:
        UsageError: If a name is unknown.
    """
    names = [name.strip() for word in words for name in word.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"Expected a known format, but got {name!r}", hint=nearest_names(name, list(FORMATS)))
    return tuple(name for name, known in FORMATS.items() if name in names or known.always)
