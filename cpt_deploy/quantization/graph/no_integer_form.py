"""The error of an operation that has no integer form."""

from torch import fx

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.graph.shapes import describe


class NoIntegerFormError(ConversionError):
    """A model is not integer from end to end; it may be captured with operations in float.

    Args:
        message: Message of the error.
        hint: Hint of the error.
        reason: The obstacle, as a clause that may follow "because".
    """

    def __init__(self, message: str, *, hint: str | None = None, reason: str) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


def no_integer_form(node: fx.Node, traced: fx.GraphModule) -> NoIntegerFormError:
    """Return the error that names an operation without an integer form."""
    return NoIntegerFormError(
        f"Expected operations that have an integer form, but got {describe(node, traced)}",
        hint="supported: Conv1d/2d, ConvTranspose1d/2d, Linear, BatchNorm, ReLU-like and elementwise activations, "
        "pooling, padding, +, *, cat, reshape, transpose, chunk, Dropout",
        reason=f"{describe(node, traced)} has no integer form",
    )
