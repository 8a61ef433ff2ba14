"""What can be told about inferences and texts while they happen: the interfaces that metrics implement."""

from collections.abc import Callable, Sequence
from typing import Protocol

from cpt_deploy.bundle.opened import OpenedBundle

QUEUE_FULL, DEADLINE, CANCELLED, ERROR = "queue_full", "deadline", "cancelled", "error"
FAILURES = (QUEUE_FULL, DEADLINE, CANCELLED, ERROR)
"""Why a request can end without outputs."""


class InferenceObserver(Protocol):
    """Is told about the inferences of one model version, always on the thread of the event loop."""

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """A request got its outputs.

        Args:
            rows: Its rows.
            queue_s: Seconds that it waited for its turn, once its rows were ready.
            compute_s: Seconds that the batch took which it rode in.
        """

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """The model computed a batch.

        Args:
            rows: Rows of all requests in it.
            compute_s: Seconds in the model.
        """

    def request_failed(self, reason: str, seconds: float) -> None:
        """A request got no outputs.

        Args:
            reason: One of `FAILURES`.
            seconds: From its arrival to its failure.
        """

    def queue_changed(self, rows: int, requests: int) -> None:
        """Another number of rows is being read or waits to be computed, of so many requests."""


class GenerationObserver(Protocol):
    """Is told about the texts of one model version, always on the thread of the event loop."""

    def texts_changed(self, count: int) -> None:
        """Another number of texts is being worked on."""

    def text_read(self, tokens: int) -> None:
        """So many tokens of a prompt, or of a text to be scored, went through the model."""

    def first_token(self, seconds: float) -> None:
        """The first token of an answer was there so many seconds after its request."""

    def next_token(self, seconds: float) -> None:
        """A further token was there so many seconds after the one before."""

    def text_finished(self, tokens: int, seconds: float) -> None:
        """A text ended, of so many generated tokens, the seconds counted from the first of them on."""


ObserverFactory = Callable[[OpenedBundle], InferenceObserver]
"""Makes the observer of a model version when it is opened."""

TextObserverFactory = Callable[[OpenedBundle], GenerationObserver]
"""Makes the observer of a model version's texts when it is opened."""


class SilentTexts:
    """Is told and keeps nothing."""

    def _nothing(self, *_values: object, **_named: object) -> None:
        """Take whatever is told."""

    texts_changed = text_read = first_token = next_token = text_finished = _nothing


class Observers:
    """Passes on what it is told to any number of observers.

    Args:
        observers: Those that are told.
    """

    def __init__(self, observers: Sequence[InferenceObserver]) -> None:
        self._observers = tuple(observers)

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """See `InferenceObserver`."""
        for observer in self._observers:
            observer.request_finished(rows, queue_s, compute_s)

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """See `InferenceObserver`."""
        for observer in self._observers:
            observer.batch_finished(rows, compute_s)

    def request_failed(self, reason: str, seconds: float) -> None:
        """See `InferenceObserver`."""
        for observer in self._observers:
            observer.request_failed(reason, seconds)

    def queue_changed(self, rows: int, requests: int) -> None:
        """See `InferenceObserver`."""
        for observer in self._observers:
            observer.queue_changed(rows, requests)
