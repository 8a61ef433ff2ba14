"""Text generation as a `Task`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.bundle import OnnxRuntimeModel, Processor
from cpt_deploy.bundle.runtime.tensors import next_states
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.signature import Signature
from cpt_deploy.tasks.catalogs import DataCheck, DataEntry, ModelEntry, ModelSize
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.reporting import Reporter

GOLDEN_ROWS, GOLDEN_TOKENS = 4, 16

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from cpt_deploy.bundle import TextProcessor
    from cpt_deploy.quantization import QuantizedModel
    from cpt_deploy.tasks.text_generation.training import LanguageModelling
    from cpt_deploy.training import RunDirectory, RunReport, TrainedRun
    from cpt_deploy.validation import Perplexity, Samples


class TextGeneration(Task):
    """See `Task`."""

    name = TEXT_GENERATION
    unit = "tokens"
    processor = "cpt_deploy.bundle.processors.text_processor:TextProcessor"
    adapter = "cpt_serving.adapters.text:TextAdapter"

    def knows(self, data: str) -> bool:
        """Return whether the data are a known corpus or a text file."""
        from cpt_deploy.data.text import is_corpus

        return is_corpus(data)

    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "LanguageModelling":
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.training import load_language_modelling

        return load_language_modelling(recipe)

    def read_processor(self, report: "RunReport", directory: "RunDirectory") -> "TextProcessor":
        """Return the processor with the vocabulary in the run's directory, see `Task`."""
        from cpt_deploy.tasks.text_generation.finished_runs import read_vocabulary

        return read_vocabulary(report, directory)

    def build_model(self, recipe: Recipe, processor: Processor) -> "QuantizedModel":
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.training import build_model

        return build_model(recipe, _expected(processor).size, trained=True)

    def samples(
        self, data: str, root: Path | None, processor: Processor, signature: Signature, limit: int | None
    ) -> "Samples":
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.samples import test_samples

        return test_samples(data, root, _expected(processor), signature, limit)

    def scoring(self) -> "Perplexity":
        """See `Task`."""
        from cpt_deploy.validation import Perplexity

        return Perplexity()

    def measure_again(self, run: "TrainedRun", samples: "Samples") -> Callable[[], float] | None:
        """Return the perplexity as the run measured it: in its rows and chunks, see `Task`."""
        from cpt_deploy.tasks.text_generation.finished_runs import perplexity_of_run

        return lambda: perplexity_of_run(run)

    def golden_inputs(
        self, data: str, root: Path | None, processor: Processor, signature: Signature
    ) -> "dict[str, npt.NDArray[Any]]":
        """Return the beginning of a few rows of the test text, see `Task`."""
        from cpt_deploy.tasks.text_generation.samples import CHUNK, ROWS

        inputs = self.samples(data, root, processor, signature, ROWS * (CHUNK + 1) - 1).first_inputs()
        return {name: values[:GOLDEN_ROWS, :GOLDEN_TOKENS] for name, values in inputs.items()}

    def timed_call(self, model: OnnxRuntimeModel, samples: "Samples") -> Callable[[], Any]:
        """Return the call for one more token after others, with their states, see `Task`."""
        row = {name: values[:1, : GOLDEN_TOKENS + 1] for name, values in samples.first_inputs().items()}
        before = {name: values[:, :-1] for name, values in row.items()}
        states = next_states(model.signature, model.run(before)) if next(iter(before.values())).size else {}
        last = {name: values[:, -1:] for name, values in row.items()}
        return lambda: model.run({**last, **states})

    def model_names(self, pattern: str | None) -> list[str]:
        """See `Task`."""
        from cpt_deploy.models.language import language_model_names

        return language_model_names(pattern or "*")

    def describe_model(self, name: str, size: ModelSize) -> ModelEntry:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.catalog import model_entry

        return model_entry(name, size)

    def known_data(self, pattern: str) -> list[DataEntry]:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.catalog import data_entries

        return data_entries(pattern)

    def check_data(self, data: str, root: Path | None, reporter: Reporter) -> DataCheck:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.check import check_text

        return check_text(data, root, reporter)

    def example_request(self, address: str) -> str:
        """See `Task`."""
        return """-d '{"prompt": "The"}' """ + f"{address}/generate"


def _expected(processor: Processor) -> "TextProcessor":
    from cpt_deploy.bundle import TextProcessor

    if not isinstance(processor, TextProcessor):
        raise TypeError(f"Expected a TextProcessor, but got {type(processor).__name__}")
    return processor
