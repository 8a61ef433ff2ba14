"""The errors that users can meet, each with the exit code of the command line and an optional hint.

Messages have one form: `Expected …, but got …`. Programming mistakes stay `TypeError` and `ValueError`.
"""


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra: from the clone, since no index has the distribution."""
    return f"pip install '.[{extra}]' in the clone of cpt-deploy"


class CptError(Exception):
    """Base of all errors that are reported as one line, without a traceback.

    Args:
        message: The expectation and the finding, in one line.
        hint: Advice on how to solve the problem, in one line.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CptWarning(UserWarning):
    """A use that is allowed but probably unintended."""


class UsageError(CptError):
    """An argument, a name or a value that the command does not accept."""

    exit_code = 2


class RecipeError(UsageError):
    """One or more settings of a recipe are wrong; the message lists all of them."""


class ConversionError(UsageError):
    """A model contains an operation that has no quantized form; the message names the operation and the module."""


class TrainingOnlyError(ConversionError):
    """A model of the scheme "sbm" is to be exported, whose quantizers have no integer form."""

    def __init__(self) -> None:
        super().__init__(
            "Expected a model with integer zero points to export, but got one trained with quantization.scheme=sbm, "
            "whose real-valued zero points have no integer form",
            hint="train with quantization.scheme=integers (the default); model.weights=RUN begins from this run",
        )


class MissingExtraError(CptError):
    """An optional dependency is not installed.

    Args:
        message: What was needed.
        extra: The extra of cpt-deploy that installs it; the hint is the command.
        hint: Advice where no extra installs it.
    """

    exit_code = 3

    def __init__(self, message: str, *, extra: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint if extra is None else how_to_install(extra))


class ValidationFailedError(CptError):
    """A bundle did not pass validation: accuracy dropped or an integer differs."""

    exit_code = 4


class DataError(CptError):
    """A data set, a file or a directory is missing, unreadable or damaged."""

    exit_code = 5


class MissingDataError(DataError):
    """The data that a recipe, a run or a command names are not here."""


class UnknownDataError(UsageError, MissingDataError):
    """A name is that of no known data set, and nothing of that name is here."""


class ImageError(DataError):
    """Bytes that were sent as an image cannot be decoded."""


class ImageTooLargeError(ImageError):
    """An image declares more pixels than the limit."""


class CheckpointError(DataError):
    """A run directory or a checkpoint is missing, truncated or of another format."""


class BundleError(DataError):
    """A bundle is incomplete, damaged, or written by a newer version."""


class TrainingDivergedError(CptError):
    """The loss became NaN or infinite."""


class ProcessLostError(CptError):
    """Another process of a distributed run failed or was killed; that process reports the reason, if it can."""


class RunInterruptedError(CptError):
    """A signal ended the run after its state was saved.

    Args:
        message: Where the run stopped.
        signal_number: The signal; the exit code is 128 plus it.
        hint: How to resume.
    """

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number
