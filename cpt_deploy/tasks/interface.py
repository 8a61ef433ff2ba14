"""The interface of tasks: everything in which kinds of models differ. Workflows, commands and the trainer use no other.

A task is an object of a class derived from `Task`. This package has two, and other packages add theirs by an entry
point in the group `cpt_deploy.tasks`, whose name is the name of the task; `examples/tabular_regression` is one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.bundle import CardFields, OnnxRuntimeModel, Processor
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe import Recipe
from cpt_deploy.signature import Signature
from cpt_deploy.tasks.catalogs import DataCheck, DataEntry, ModelEntry, ModelSize
from cpt_deploy.tasks.reporting import Reporter

GOLDEN_SAMPLES = 8

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import nn

    from cpt_deploy.quantization import QuantizedModel
    from cpt_deploy.training import RunDirectory, RunReport, TrainedRun, TrainingTask
    from cpt_deploy.validation import Samples, Scoring


class Task(ABC):
    """A kind of model: how it is trained, scored, exported and served. Methods with a body here may stay as they are.

    A task is imported when `cpt` reads a recipe, so its module imports torch only in its methods.

    Attributes:
        name: Name in recipes, reports and bundles: the pipeline tag of Hugging Face.
        unit: Name of the samples, in the plural.
        processor: Class of the processors of its bundles, or its import path "module:Class".
        adapter: Import path "module:Class" of the server's adapter; None is the one that serves tensors by name.
    """

    name: str
    unit: str
    processor: type[Processor] | str = "cpt_deploy.bundle.processors.tensor_processor:TensorProcessor"
    adapter: str | None = None

    def knows(self, data: str) -> bool:
        """Return whether `data.name` of a recipe, which names no task, can only belong to this task."""
        return False

    @abstractmethod
    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "TrainingTask":
        """Open the data of a recipe and resolve the settings that depend on them: `cpt_deploy.training.load_task`."""

    @abstractmethod
    def read_processor(self, report: "RunReport", directory: "RunDirectory") -> Processor:
        """Return the processor of a finished run from its report and its files.

        Raises:
            CheckpointError: If a file is missing or damaged.
        """

    @abstractmethod
    def build_model(self, recipe: Recipe, processor: Processor) -> "QuantizedModel":
        """Build the CPT model of a finished run, whose weights are loaded afterwards, on the CPU."""

    @abstractmethod
    def samples(
        self, data: str, root: Path | None, processor: Processor, signature: Signature, limit: int | None
    ) -> "Samples":
        """Return the samples of a test split as inputs of a processor.

        Args:
            data: Name, path or import path of the data.
            root: Folder of known data; None is the default.
            processor: The processor of a bundle or of a run.
            signature: Inputs, outputs and states of its model.
            limit: Number of samples, spread over the split where they do not depend on each other; None is all.

        Raises:
            DataError: If the data cannot be read, or do not fit the processor.
        """

    @abstractmethod
    def scoring(self) -> "Scoring":
        """Return how outputs are scored; its metric is that of the training task."""

    @abstractmethod
    def example_request(self, address: str) -> str:
        """Return arguments of curl for an example request to a served model.

        Args:
            address: Address of the server, with the path of the model if it serves several.
        """

    def golden_inputs(
        self, data: str, root: Path | None, processor: Processor, signature: Signature
    ) -> "Mapping[str, npt.NDArray[Any]]":
        """Return a few test inputs by name, whose outputs a bundle keeps as its golden sample; see `samples`."""
        return self.samples(data, root, processor, signature, GOLDEN_SAMPLES).first_inputs()

    def model_names(self, pattern: str | None) -> list[str]:
        """Return the models that recipes can name and that match a shell pattern; without one those to list first."""
        return []

    def describe_model(self, name: str, size: ModelSize) -> ModelEntry:
        """Return parameters and multiply-accumulates of one of `model_names`."""
        return ModelEntry(name, self.name)

    def known_data(self, pattern: str) -> Sequence[DataEntry]:
        """Return the data that recipes can name and that match a shell pattern."""
        return ()

    def check_data(self, data: str, root: Path | None, reporter: Reporter) -> DataCheck:
        """Read all samples of a data set, and return its content and problems.

        Args:
            data: Name, path or import path of the data.
            root: Folder of known data; None is the default.
            reporter: Receives the progress.

        Raises:
            DataError: If there is no such data set.
            UsageError: If the task has no check.
        """
        raise UsageError(f"Expected data that can be checked, but the task {self.name} has no check of {data!r}")

    def card(self, run: "TrainedRun") -> CardFields:
        """Return the author's part of the model card."""
        return CardFields()

    def measure_again(self, run: "TrainedRun", samples: "Samples") -> Callable[[], float] | None:
        """Return a function that repeats the final evaluation of a run, if it differs from that of a validation.

        Args:
            run: The run.
            samples: Its test samples.
        """
        return None

    def source_network(self, path: Path, model: str | None, processor: Processor) -> "nn.Module":
        """Return a float model whose weights were trained elsewhere, in evaluation mode.

        Args:
            path: The file of its weights.
            model: Name or import path of the model that its weights belong to.
            processor: The processor of its bundle.

        Raises:
            CptError: If the task cannot use such models, or the file cannot be read.
        """
        raise UsageError(f"Expected a run, but got a float model, which the task {self.name} does not read")

    def timed_call(self, model: OnnxRuntimeModel, samples: "Samples") -> Callable[[], Any]:
        """Return a call of a model, as a server makes it for one request, to be timed by `cpt sweep`."""
        first = {name: values[:1] for name, values in samples.first_inputs().items()}
        return lambda: model.run(first)
