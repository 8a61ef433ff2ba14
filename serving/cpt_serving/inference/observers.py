"""What can be told about inferences while they happen: the interface that metrics and statistics implement."""

from collections.abc import Callable, Sequence
from typing import Protocol

from cpt_deploy.bundle.opened import OpenedBundle


class InferenceObserver(Protocol):
    """Is told about the inferences of one model version, always on the thread of the event loop."""

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """A request got its logits.

        Args:
            rows: Its rows.
            queue_s: Seconds that it waited for its turn.
            compute_s: Seconds that the batch took which it rode in.
        """

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """The model computed a batch.

        Args:
            rows: Rows of all requests in it.
            compute_s: Seconds in the model.
        """

    def request_failed(self, reason: str, seconds: float) -> None:
        """A request got no logits.

        Args:
            reason: One of `cpt_serving.inference.batching.FAILURES`.
            seconds: From its arrival to its failure.
        """

    def queue_changed(self, rows: int, requests: int) -> None:
        """Another number of rows is waiting, of so many requests."""


ObserverFactory = Callable[[OpenedBundle], InferenceObserver]
"""Makes the observer of a model version when it is opened."""


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
