"""Answers to errors, `{"error": ..., "request_id": ...}`: 4xx if the client is at fault, 5xx if the server is."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cpt_deploy.errors import CptError, ImageError, ImageTooLargeError
from cpt_deploy.invalid_values import place_of, problem_of
from cpt_serving.inference.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    QueueFullError,
    ServingError,
)
from cpt_serving.telemetry.records import current_record
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.shown import shown

if TYPE_CHECKING:  # `cpt predict` reads these errors without a server
    from fastapi import FastAPI
    from starlette.requests import Request

_STATUSES: Mapping[type[CptError], int] = {
    InvalidRequestError: 400,
    ModelNotFoundError: 404,
    QueueFullError: 429,
    NotReadyError: 503,
    DeadlineExceededError: 504,
}

INTERNAL_ERROR = "Internal error; the server's log has it under this id"


class RequestError(Exception):
    """A request that cannot be answered as asked.

    Args:
        status: HTTP status.
        message: What was expected and what was received, in one line.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def bad_request(message: str) -> RequestError:
    """Return the error of a request whose content is wrong."""
    return RequestError(400, message)


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JsonResponse:
    """Return the answer to the current request in the form of all errors."""
    return JsonResponse({"error": message, "request_id": running_id()}, status, dict(headers or {}))


def running_id() -> str:
    """Return the id of the current request."""
    record = current_record.get()
    return "" if record is None else record.request_id


def image_error_status(error: ImageError) -> int:
    """Return the status of an image that cannot be used."""
    return 413 if isinstance(error, ImageTooLargeError) else 400


def as_request_error(error: RequestError | CptError) -> RequestError:
    """Convert an error of this project to a status, a message and headers for the client."""
    if isinstance(error, RequestError):
        return error
    status = image_error_status(error) if isinstance(error, ImageError) else _STATUSES.get(type(error), 500)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    retry_after_s = error.retry_after_s if isinstance(error, ServingError) else None
    return RequestError(status, message, {} if retry_after_s is None else {"Retry-After": str(retry_after_s)})


def error_answer(error: RequestError | CptError) -> JsonResponse:
    """Return the answer to the current request, which ended in an error of this project."""
    meant = as_request_error(error)
    return error_response(meant.status, meant.message, meant.headers)


def add_error_handlers(app: "FastAPI", authorize: "Callable[[Request], None]") -> None:
    """Make an app answer all errors in the same form, including those of the framework.

    Args:
        app: The app.
        authorize: Raises a `RequestError` for a client that may not learn which paths do not exist.
    """
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def own_error(_request: "Request", error: Exception) -> JsonResponse:
        if not isinstance(error, RequestError | CptError):
            raise TypeError(f"an error of an unknown kind: {type(error)}")
        return error_answer(error)

    async def http_error(request: "Request", error: Exception) -> JsonResponse:
        if not isinstance(error, HTTPException):
            raise TypeError(f"an error of an unknown kind: {type(error)}")
        try:
            authorize(request)
        except RequestError as refusal:
            return error_answer(refusal)
        message = {
            404: f"Expected a known path, but got {shown(request.url.path)}",
            405: f"Expected another method for {shown(request.url.path)}, but got {request.method}",
        }.get(error.status_code, str(error.detail))
        return error_response(error.status_code, message, error.headers)

    async def invalid_parameters(_request: "Request", error: Exception) -> JsonResponse:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        problems = "; ".join(f"{place_of(each)}: {problem_of(each, shown)}" for each in found)
        return error_response(422, f"Expected valid parameters, but got: {problems}")

    async def bug(_request: "Request", _error: Exception) -> JsonResponse:
        return error_response(500, INTERNAL_ERROR)  # the exception also continues into the log

    app.add_exception_handler(Exception, bug)
    for kind in (RequestError, CptError):
        app.add_exception_handler(kind, own_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_parameters)
