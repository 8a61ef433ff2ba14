"""The interface of processors: what turns a request into tensors and tensors into an answer, in the files of a bundle.

A processor needs no PyTorch. Its own methods, which only the adapters and commands of its task call, convert requests;
this interface is what every bundle needs of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, Self

from cpt_deploy.errors import BundleError
from cpt_deploy.registry import Registry
from cpt_deploy.signature import Signature

TASKS_GROUP = "cpt_deploy.tasks"
"""The group of entry points in which packages register tasks; the attribute `processor` of a task is used here."""

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


processors: Registry[type[Processor]] = Registry(
    "processor",
    modules={
        "image-classification": "cpt_deploy.bundle.processors.image_processor:ImageProcessor",
        "text-generation": "cpt_deploy.bundle.processors.text_processor:TextProcessor",
    },
)
"""Classes of processors by task; a task of another package has its own, see `processor_class`."""


def processor_class(task: str) -> type[Processor]:
    """Return the class of a task's processor: that of `processors`, or the attribute `processor` of an installed task.

    The attribute is the class, or its import path "module:Class". Unknown tasks have a `TensorProcessor`.

    Raises:
        ImportError: If an import path does not exist.
    """
    from cpt_deploy.bundle.processors.tensor_processor import TensorProcessor

    if task in processors:
        return processors.get(task)
    for entry in entry_points(group=TASKS_GROUP, name=task):
        found: Any = getattr(entry.load(), "processor", TensorProcessor)
        # Not from the working directory: a server runs where others may write.
        kind: type[Processor] = EntryPoint(task, found, TASKS_GROUP).load() if isinstance(found, str) else found
        return kind
    return TensorProcessor


def read_processor(task: str, config: Mapping[str, Any], read_file: ReadFile) -> Processor:
    """Create the processor of a bundle from its files.

    Raises:
        BundleError: If a file is missing or damaged, or the bundle has another processor than its task has here.
        MissingExtraError: If a package that it needs is not installed.
    """
    kind = processor_class(task)
    check_processor(task, str(config["cpt"].get("processor")))
    return kind.read(config, read_file)


def check_processor(task: str, name: str) -> None:
    """Check that a processor is of the class that a task has here.

    Args:
        task: The task.
        name: Name of the processor's class.

    Raises:
        BundleError: If the task has another one.
    """
    expected = processor_class(task).__name__
    if name != expected:
        raise BundleError(
            f"Expected the {expected} of the task {task}, but got the processor {name}",
            hint=f"a package adds a task with its own processor by an entry point in the group {TASKS_GROUP}",
        )
