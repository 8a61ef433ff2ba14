"""Export the run of a language model to a bundle: calibration on text, sensitivity, golden tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cpt_deploy.bundle import Bundle, TextProcessor
from cpt_deploy.data.text import Corpus, evaluation_chunks, load_corpus, training_chunk, training_rows
from cpt_deploy.errors import UsageError
from cpt_deploy.export import ModelIdentity
from cpt_deploy.export.language.bundle_export import export_language_bundle
from cpt_deploy.quantization import calibrating, make_native, measure_loss_sensitivity
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.tasks.exporting import (
    TRAINED_DIGEST,
    BitAllocation,
    ExportOptions,
    Sensitivity,
    dataset_name,
    shippable,
)
from cpt_deploy.tasks.reporting import Reporter
from cpt_deploy.training import TrainedLanguageModel, load_language_model

CALIBRATION_CHUNKS = 64
"""Number of chunks of training text on which ranges are estimated at other bits."""
SENSITIVITY_TOKENS = 8192
"""Number of tokens of validation text on which each layer's sensitivity is measured."""


@dataclass(frozen=True)
class TextExport:
    """See `RunExport`."""

    run: TrainedLanguageModel
    options: ExportOptions
    corpus: Corpus

    def change_ranges(self) -> bool:
        """See `RunExport`."""
        if self.options.native:
            make_native(self.run.model)
        return self.options.native

    def calibrate(self, bits: BitAllocation, reporter: Reporter) -> None:
        """Estimate activation ranges again on training text, see `RunExport`."""
        recipe, model, state = self.run.recipe, self.run.model, None
        rows = training_rows(self.run.tokenizer.encode(self.corpus.text("train")), recipe.train.batch_size)
        reporter.note(
            f"estimating activation ranges with {bits.describe(recipe.precision.max_bits)} on "
            f"{CALIBRATION_CHUNKS} chunks "
            "of training text"
        )
        with torch.no_grad(), model.at_max_bits(bits.weights, bits.activations), calibrating(model):
            for number in range(CALIBRATION_CHUNKS):
                chunk = training_chunk(rows, recipe.data.text.sequence, number)
                _, state = model(chunk.tokens, None if chunk.first else state)
                state = state if model.carries_state else None

    def measure_sensitivity(self, candidates: Sequence[int], activation_bits: int, reporter: Reporter) -> Sensitivity:
        """Measure how fewer bits change the loss on validation text, see `RunExport`."""
        recipe, model = self.run.recipe, self.run.model
        ids = self.run.tokenizer.encode(self.corpus.text("valid"))[: SENSITIVITY_TOKENS + 1]
        text = recipe.data.text
        chunks = list(evaluation_chunks(ids, recipe.train.batch_size, text.sequence, text.context))
        scheduled = sum(layer.role != "fixed" for layer in model.layers())
        with reporter.bar("measuring sensitivity", scheduled) as bar:
            layers = measure_loss_sensitivity(
                model, chunks, candidates, activation_bits=activation_bits, progress=bar.advance
            )
        return Sensitivity(layers, "loss_rise", {"sensitivity_tokens": len(ids) - 1})

    def write(self, destination: Path, bits: BitAllocation) -> Bundle:
        """See `RunExport`."""
        run = self.run
        identity = ModelIdentity(
            name=run.recipe.name,
            architecture=run.recipe.model.name,
            task=TEXT_GENERATION,
            processor=TextProcessor(run.tokenizer),
            facts={
                "dataset": dataset_name(run.recipe.data.name),
                TRAINED_DIGEST: run.weights_sha256,
                "trained_perplexity": run.report.figure,
                **bits.facts,
            },
            recipe=shippable(run.recipe),
        )
        return export_language_bundle(
            run.model,
            destination,
            identity,
            run.tokenizer.encode(self.corpus.text("test")),
            weight_bits=bits.weights,
            activation_bits=bits.activations,
            opset=self.options.opset,
        )


def begin_export(run_dir: Path, options: ExportOptions, data_dir: Path | None) -> TextExport:
    """Load a run and its text to export its model, see `Task`."""
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
    run = load_language_model(run_dir)
    root = data_dir or run.recipe.data.root
    return TextExport(run, options, load_corpus(run.recipe.data.name, None if root is None else Path(root)))
