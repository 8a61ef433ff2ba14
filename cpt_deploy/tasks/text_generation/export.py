"""Export the run of a language model to a bundle: calibration on text, sensitivity, golden tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cpt_deploy.bundle import Bundle, TextProcessor
from cpt_deploy.bundle.processors.tokenization import Tokenizer
from cpt_deploy.data.text import Corpus, evaluation_chunks, load_corpus, training_chunk, training_rows
from cpt_deploy.export import ModelIdentity
from cpt_deploy.export.language.bundle_export import export_language_bundle
from cpt_deploy.quantization import QuantizedLanguageModel, calibrating, measure_loss_sensitivity
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.tasks.exporting import (
    TRAINED_DIGEST,
    BitAllocation,
    Sensitivity,
    dataset_name,
    shippable,
)
from cpt_deploy.tasks.reporting import Reporter
from cpt_deploy.tasks.run_export import RunExport
from cpt_deploy.training import TrainedRun

CALIBRATION_CHUNKS = 64
"""Number of chunks of training text on which ranges are estimated at other bits."""
SENSITIVITY_TOKENS = 8192
"""Number of tokens of validation text on which each layer's sensitivity is measured."""


@dataclass(frozen=True, eq=False)
class TextExport(RunExport):
    """See `RunExport`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return self.run.expect_processor(TextProcessor).tokenizer

    @cached_property
    def corpus(self) -> Corpus:
        """The text of the run."""
        root = self.run.recipe.data.root
        return load_corpus(self.run.recipe.data.name, None if root is None else Path(root))

    def calibrate(self, bits: BitAllocation, reporter: Reporter) -> None:
        """Estimate activation ranges again on training text, see `RunExport`."""
        recipe, model, state = self.run.recipe, language_model(self.run), None
        rows = training_rows(self.tokenizer.encode(self.corpus.text("train")), recipe.train.batch_size)
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
        recipe, model = self.run.recipe, language_model(self.run)
        ids = self.tokenizer.encode(self.corpus.text("valid"))[: SENSITIVITY_TOKENS + 1]
        text = recipe.data.text
        chunks = list(evaluation_chunks(ids, recipe.train.batch_size, text.sequence, text.context))
        scheduled = sum(layer.role != "fixed" for layer in model.layers())
        with reporter.bar("measuring sensitivity", scheduled) as bar:
            layers = measure_loss_sensitivity(
                model, chunks, candidates, activation_bits=activation_bits, progress=bar.advance
            )
        return Sensitivity(layers, f"rise of the loss in nats per token on {len(ids) - 1:,} tokens of validation text")

    def write(self, destination: Path, bits: BitAllocation) -> Bundle:
        """See `RunExport`."""
        run = self.run
        identity = ModelIdentity(
            name=run.recipe.name,
            architecture=run.recipe.model.name,
            task=TEXT_GENERATION,
            processor=run.processor,
            facts={
                "dataset": dataset_name(run.recipe.data.name),
                TRAINED_DIGEST: run.weights_sha256,
                "trained_perplexity": run.report.figure,
                **bits.facts,
            },
            recipe=shippable(run.recipe),
        )
        return export_language_bundle(
            language_model(run),
            destination,
            identity,
            self.tokenizer.encode(self.corpus.text("test")),
            weight_bits=bits.weights,
            activation_bits=bits.activations,
            opset=self.options.opset,
        )


def language_model(run: TrainedRun) -> QuantizedLanguageModel:
    """Return the model of a run of this task."""
    model: Any = run.model
    assert isinstance(model, QuantizedLanguageModel)
    return model
