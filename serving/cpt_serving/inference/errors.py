"""Errors of the engine and the repository, independent of protocols.

HTTP and gRPC map them to statuses in one place each.
"""

from cpt_deploy.errors import CptError, UsageError


class ServingError(CptError):
    """Base class of these errors; the message is for the client.

    Args:
        message: What was expected and what was found, in one line.
        hint: What to do about it, in one line.
        retry_after_s: Seconds after which a retry makes sense.
    """

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class InvalidRequestError(ServingError, UsageError):
    """The request is invalid, whatever the state of the server."""


class ModelNotFoundError(ServingError):
    """There is no such model or version, or it was unloaded."""


class QueueFullError(ServingError):
    """The queue is full, and the request is refused."""


class NotReadyError(ServingError):
    """The model is not loaded: not yet, or not any more."""


class DeadlineExceededError(ServingError):
    """The deadline of the request passed."""


def not_ready(reason: str) -> NotReadyError:
    """Return the error of a model that is not ready."""
    return NotReadyError(f"Expected a model that is ready, but {reason}", retry_after_s=1)


def deadline_passed() -> DeadlineExceededError:
    """Return the error of a request whose deadline has passed."""
    return DeadlineExceededError("Expected an answer before the request's deadline, but it passed")
