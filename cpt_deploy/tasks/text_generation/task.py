"""Text generation as a `Task`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.bundle import Bundle, Processor
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.signature import Signature
from cpt_deploy.tasks.evidence import Evidence, Origin, ValidationOptions
from cpt_deploy.tasks.exporting import ExportOptions
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    import torch

    from cpt_deploy.bundle import TextProcessor
    from cpt_deploy.tasks.text_generation.export import TextExport
    from cpt_deploy.tasks.text_generation.training import LanguageModelling
    from cpt_deploy.training import RunDirectory, RunReport
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
        from cpt_deploy.tasks.text_generation.training import read_vocabulary

        return read_vocabulary(report, directory)

    def build_model(self, recipe: Recipe, processor: Processor) -> Any:
        """See `Task`."""
        from cpt_deploy.training.loop.setup import build_quantized_language_model

        return build_quantized_language_model(recipe, _expected(processor).size)

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

    def check_export(self, options: ExportOptions) -> None:
        """See `Task`."""
        if options.symmetric:
            raise UsageError(
                "Expected affine activations for a language model, but got --activations symmetric",
                hint="its products are MatMulInteger of uint8 codes, which engines that want int8 do not take",
            )
        further = sorted(set(options.formats) - {"onnx", "safetensors"})
        if further:
            raise UsageError(
                f"Expected a language model as onnx and safetensors, but got --format {','.join(further)}",
                hint="its integer executor is no PyTorch program; model.onnx runs in onnxruntime",
            )

    def begin_export(self, run_dir: Path, options: ExportOptions, data_dir: Path | None) -> "TextExport":
        """Load a run to export its model."""
        from cpt_deploy.tasks.text_generation.export import TextExport
        from cpt_deploy.training import load_run

        self.check_export(options)
        return TextExport(self, load_run(run_dir, data_dir=data_dir), options)

    def validate(
        self, bundle: Bundle, options: ValidationOptions, origin: Origin, reporter: Reporter, *, require_exact: bool
    ) -> Evidence:
        """Measure a bundle, judge it against its origin, and store the evidence in it."""
        from cpt_deploy.tasks.text_generation.validation import validate_bundle

        return validate_bundle(bundle, options, origin, reporter, require_exact=require_exact)

    def example_request(self, address: str) -> str:
        """See `Task`."""
        return """-d '{"prompt": "The"}' """ + f"{address}/generate"


def _expected(processor: Processor) -> "TextProcessor":
    from cpt_deploy.bundle import TextProcessor

    if not isinstance(processor, TextProcessor):
        raise TypeError(f"Expected a TextProcessor, but got {type(processor).__name__}")
    return processor
