"""What is told about inferences and texts while they happen."""

QUEUE_FULL, DEADLINE, CANCELLED, ERROR = "queue_full", "deadline", "cancelled", "error"
FAILURES = (QUEUE_FULL, DEADLINE, CANCELLED, ERROR)
"""Why a request can end without outputs."""


class ModelObserver:
    """Is told about one model version, always on the thread of the event loop; what is not overridden is not kept."""

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """A request of so many rows got its outputs, after seconds in the queue and in the batch that it rode in."""

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """The model computed a batch of so many rows, of all requests in it, in so many seconds."""

    def request_failed(self, reason: str, seconds: float) -> None:
        """A request got no outputs, for one of `FAILURES`, so many seconds after its arrival."""

    def queue_changed(self, rows: int, requests: int) -> None:
        """Another number of rows is being read or waits to be computed, of so many requests."""

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
