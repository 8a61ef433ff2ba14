"""Why a model does not answer: errors of the engine and the repository, apart from any protocol.

HTTP and gRPC map them to their statuses in one place each.
"""

from cpt_deploy.errors import CptError


class ServingError(CptError):
    """Base of what a request can end with here; its message is for the client.

    Args:
        message: What was expected and what was found, in one line.
        hint: What to do about it, in one line.
        retry_after_s: When it is worth asking again, in seconds.
    """

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class InvalidRequestError(ServingError):
    """What was asked for cannot be, whatever the state of the server."""


class ModelNotFoundError(ServingError):
    """There is no such model, no such version, or it was unloaded."""


class QueueFullError(ServingError):
    """So much waits already that a request is refused."""


class NotReadyError(ServingError):
    """The model is not loaded, not yet or not any more."""


class DeadlineExceededError(ServingError):
    """The answer would come too late."""


def not_ready(reason: str) -> NotReadyError:
    """Return the error of a model that cannot be asked now."""
    return NotReadyError(f"Expected a model that is ready, but {reason}", retry_after_s=1)


def deadline_passed() -> DeadlineExceededError:
    """Return the error of a request whose deadline has passed."""
    return DeadlineExceededError("Expected an answer before the request's deadline, but it passed")
