"""The interface of processors: what turns a request into tensors and tensors into an answer, in the files of a bundle.

A processor needs no PyTorch. Its own methods, which only the adapters and commands of its task call, convert requests;
this interface is what every bundle needs of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from cpt_deploy.signature import Signature

ReadFile = Callable[[str], bytes]
"""Returns the content of a bundle's file by its name; raises a `BundleError` if there is none."""


@dataclass(frozen=True, slots=True)
class CardText:
    """A processor's part of a model card.

    Attributes:
        kind: The kind of model as the beginning of a sentence, e.g. "An image classifier with 10 classes".
        use: Lines of shell to try the model.
        about: Sentences on the files of the processor.
        rows: Further rows of the table, by name.
    """

    kind: str
    use: tuple[str, ...]
    about: str = ""
    rows: Mapping[str, object] = field(default_factory=dict)


class Processor(Protocol):
    """Converts requests to tensors and tensors to answers."""

    @classmethod
    def read(cls, config: Mapping[str, Any], read_file: ReadFile) -> Self:
        """Create a processor from the files of a bundle.

        Args:
            config: The content of config.json.
            read_file: Returns the content of a file.

        Raises:
            BundleError: If a file is missing or does not have the expected content.
            MissingExtraError: If a package that it needs is not installed.
        """

    def files(self) -> dict[str, bytes]:
        """Return the content of its files by name."""

    def config(self) -> dict[str, Any]:
        """Return its entries of config.json for other readers."""

    def facts(self) -> dict[str, Any]:
        """Return its entries of config.json's section "cpt"; text and numbers appear in the model card too."""

    def check(self, signature: Signature) -> None:
        """Check that it fits a model.

        Raises:
            ValueError: If it does not; the message has both.
        """

    def contradictions(self, config: Mapping[str, Any], read_file: ReadFile) -> list[str]:
        """Return the contradictions between its files and config.json, as sentences."""

    def onnx_metadata(self) -> dict[str, str]:
        """Return its entries of model.onnx's metadata for other readers."""

    def card(self, signature: Signature) -> CardText:
        """Return its part of the model card."""
