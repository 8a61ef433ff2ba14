"""The processor of each task: those of this library, and those of tasks of other packages."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cpt_deploy.bundle.processors.processor import Processor, ReadFile
from cpt_deploy.bundle.processors.tensor_processor import TensorProcessor
from cpt_deploy.errors import BundleError
from cpt_deploy.registry import Registry

TASKS_GROUP = "cpt_deploy.tasks"
"""The group of entry points in which packages register tasks; the attribute `processor` of a task is used here."""

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
