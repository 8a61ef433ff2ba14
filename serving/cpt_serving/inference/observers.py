"""The interface by which the engine reports inferences and texts, for example to the metrics."""

QUEUE_FULL, DEADLINE, CANCELLED, ERROR = "queue_full", "deadline", "cancelled", "error"
FAILURES = (QUEUE_FULL, DEADLINE, CANCELLED, ERROR)
"""Reasons for a request without outputs."""


class ModelObserver:
    """Observer of one model version; methods are called on the thread of the event loop and do nothing by default."""

    def request_finished(self, rows: int, queue_s: float, compute_s: float) -> None:
        """Handle the outputs of a request: its rows, its seconds in the queue and the seconds of its batch."""

    def batch_finished(self, rows: int, compute_s: float) -> None:
        """Handle a computed batch: the rows of all its requests together, and its seconds."""

    def request_failed(self, reason: str, seconds: float) -> None:
        """Handle a request without outputs: the reason, one of `FAILURES`, and the seconds since its arrival."""

    def text_read(self, tokens: int) -> None:
        """Handle tokens of a prompt, or of a text to be scored, that the model has read."""

    def first_token(self, seconds: float) -> None:
        """Handle the first token of an answer: the seconds since the request arrived."""

    def next_token(self, seconds: float) -> None:
        """Handle a further token: the seconds since the previous one."""

    def text_finished(self, tokens: int, seconds: float) -> None:
        """Handle the end of a text: the number of generated tokens, and the seconds since the first of them."""
