"""What can be told about texts that are generated while that happens: the interface that metrics implement."""

from collections.abc import Callable
from typing import Protocol

from cpt_deploy.bundle.language import LanguageBundle


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


TextObserverFactory = Callable[[LanguageBundle], GenerationObserver]
"""Makes the observer of a language model's texts when it is opened."""


class _Nobody:
    """Is told and keeps nothing."""

    def texts_changed(self, count: int) -> None:
        """See `GenerationObserver`."""

    def text_read(self, tokens: int) -> None:
        """See `GenerationObserver`."""

    def first_token(self, seconds: float) -> None:
        """See `GenerationObserver`."""

    def next_token(self, seconds: float) -> None:
        """See `GenerationObserver`."""

    def text_finished(self, tokens: int, seconds: float) -> None:
        """See `GenerationObserver`."""


def unobserved(_bundle: LanguageBundle) -> GenerationObserver:
    """Return an observer that keeps nothing."""
    return _Nobody()
