"""The training task of language models: truncated backpropagation through time with carried state, and perplexity.

A step reads the next `data.text.sequence` tokens of each of `train.batch_size` rows. The state at its end is the
initial state of the next step, without its gradient; at the beginning of an epoch it is empty. Perplexity is exp of the
mean negative log-likelihood of every token of a text except the first, each predicted once; the text is divided into
`train.eval_batch_size` parallel rows, each of which begins with an empty state (1 row: the text as it is).
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cpt_deploy.bundle.processors.text_processor import context_of
from cpt_deploy.bundle.processors.tokenization import Ids, Tokenizer
from cpt_deploy.data import WHOLE, Share
from cpt_deploy.data.text import (
    Chunk,
    Corpus,
    TextSplit,
    build_tokenizer,
    corpora,
    evaluation_chunks,
    load_corpus,
    steps_per_epoch,
    token_digest,
    training_chunk,
    training_rows,
)
from cpt_deploy.errors import CheckpointError, UsageError
from cpt_deploy.metric import PERPLEXITY
from cpt_deploy.models.language import build_language_model, preparing_arguments
from cpt_deploy.quantization import QuantizedModel, calibrating, class_divergence, round_biases
from cpt_deploy.quantization.stateful import State
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.signature import TOKENS_NAME, Signature
from cpt_deploy.tasks.text_generation.evaluation import evaluate_text, scores_of, token_losses
from cpt_deploy.training.distributed.process_group import ProcessGroup
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.fine_tuning import refuse_weights
from cpt_deploy.training.loop.setup import prepare_network
from cpt_deploy.training.reports import Evaluation
from cpt_deploy.training.run_directory.files import disk_errors, write_atomically
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.task import Final, StepOutcome, Stop, TrainingTask


def build_model(recipe: Recipe, vocabulary: int, *, trained: bool = False) -> QuantizedModel:
    """Build and prepare the network of a recipe, with fresh weights, on the CPU.

    Args:
        recipe: The settings.
        vocabulary: Number of different tokens.
        trained: See `prepare_network`.

    Raises:
        CptError: If the model is unknown, does not take the arguments, or has no quantized form.
    """
    network = build_language_model(recipe.model.name, vocabulary, **recipe.model.args)
    inputs, shapes, states = preparing_arguments(network, vocabulary)
    return prepare_network(network, recipe, inputs, trained=trained, dynamic_shapes=shapes, states=states)


class LanguageModelling(TrainingTask):
    """The task, see `TrainingTask`.

    Args:
        recipe: The settings.
        corpus: The text.
        tokenizer: Its vocabulary.

    Raises:
        UsageError: If settings are for images.
        DataError: If the text cannot be read or is too short.
    """

    name = TEXT_GENERATION
    unit = "tokens"
    metric = PERPLEXITY
    train_metrics = test_metrics = ("accuracy", "perplexity")
    held_out = "validation"

    def __init__(self, recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> None:
        _check_settings(recipe)
        self.recipe, self.corpus, self.tokenizer = recipe, corpus, tokenizer
        self.length, self.context = recipe.data.text.sequence, recipe.data.text.context
        self.train = self._limited(tokenizer.encode(corpus.text("train")), recipe.train.batch_size)
        self.train_rows = training_rows(self.train, recipe.train.batch_size)
        self._held_out: dict[TextSplit, Ids] = {}
        self._carried: State | None = None
        self._signature: Signature

    @property
    def steps_per_epoch(self) -> int:
        """See `TrainingTask`."""
        return steps_per_epoch(self.train_rows, self.length)

    @property
    def step_samples(self) -> int:
        """Number of tokens of a step."""
        return self.rows * min(self.length, int(self.train_rows.shape[1]) - 1)

    @property
    def rows(self) -> int:
        """Number of rows of a batch."""
        return int(self.train_rows.shape[0])

    @property
    def classes(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.size

    @property
    def samples(self) -> tuple[int, int]:
        """Number of training and of test tokens."""
        return len(self.train), len(self.ids("test"))

    @cached_property
    def data_digest(self) -> str:
        """See `TrainingTask`."""
        return token_digest(self.train)

    def ids(self, split: TextSplit) -> Ids:
        """Return the tokens of a split."""
        if split == "train":
            return self.train
        if split not in self._held_out:
            ids = self.tokenizer.encode(self.corpus.text(split))
            self._held_out[split] = self._limited(ids, self.recipe.train.eval_batch_size)
        return self._held_out[split]

    def _limited(self, ids: Ids, rows: int) -> Ids:
        """Return the tokens that `data.limit` chunks of `rows` rows read and predict."""
        limit = self.recipe.data.limit
        return ids if limit is None else ids[: rows * (limit * self.length + 1)]

    def build_model(self) -> QuantizedModel:
        """See `TrainingTask`."""
        model = build_model(self.recipe, self.tokenizer.size)
        self._signature, most = model.signature, context_of(model.signature)
        if most is not None and self.length + self.context > most:
            raise UsageError(
                f"Expected sequences of at most {most} tokens, the model's context, but data.text has "
                f"sequence={self.length} and context={self.context}",
                hint="lower them or raise model.args.context",
            )
        return model

    def begin(self, directory: RunDirectory) -> None:
        """Write the vocabulary."""
        with disk_errors("the vocabulary", directory.tokenizer):
            write_atomically(directory.tokenizer, self.tokenizer.to_json().encode())

    def check(self, directory: RunDirectory) -> None:
        """Check that the corpus still has the vocabulary with which the run began, see `TrainingTask`."""
        try:
            begun = directory.tokenizer.read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"Expected the run's vocabulary at {directory.tokenizer}, but got: {error}"
            ) from error
        if begun != self.tokenizer.to_json():
            raise CheckpointError(
                f"Expected the vocabulary that the run began with ({directory.tokenizer}), but the training text of "
                f"{self.corpus.name} has another one, of {self.tokenizer.size} tokens",
                hint="resume with the text that the run began with",
            )

    def stream(self, steps: range, process_group: ProcessGroup, *, pin_memory: bool) -> Iterator[Chunk]:
        """Yield chunks of this process's rows, see `TrainingTask`."""
        rows = self.train_rows[process_group.share.of(self.rows)]
        for number in steps:
            yield training_chunk(rows, self.length, number)

    def step(self, model: nn.Module, batch: Chunk, device: torch.device, *, autocast: bool) -> StepOutcome:
        """See `TrainingTask`."""
        before = None if batch.first else self._carried
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            scores, after = scores_of(model, self._signature, batch.tokens.to(device), before)
            losses, hits = token_losses(scores, batch.targets.to(device))
        self._carried = None if after is None else tuple(part.detach() for part in after)
        return StepOutcome(losses.float().mean(), hits, batch.tokens.numel(), self.rows * batch.tokens.shape[1])

    def state(self, model: QuantizedModel, process_group: ProcessGroup) -> Mapping[str, Tensor]:
        """Return the carried state of all rows."""
        if self._carried is None:
            return {}
        parts = process_group.collect(tuple(tensor.cpu() for tensor in self._carried))
        return {str(place): torch.cat(rows) for place, rows in enumerate(zip(*parts, strict=True))}

    def restore(
        self, state: Mapping[str, Tensor], model: QuantizedModel, device: torch.device, process_group: ProcessGroup
    ) -> None:
        """Restore the state of this process's rows."""
        rows = process_group.share.of(self.rows)
        self._carried = tuple(state[str(place)][rows].to(device) for place in range(len(state))) or None

    def evaluate(
        self, model: QuantizedModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Evaluation | None:
        """Evaluate on the validation text, see `TrainingTask`."""
        return self._evaluate("valid", model, device, step, stop, process_group)

    def calibration_inputs(self, share: Share = WHOLE) -> Iterator[dict[str, Tensor]]:
        """Yield the first chunks of the training text, with a process's share of the rows, see `TrainingTask`."""
        rows = self.train_rows[share.of(self.rows)]
        for number in range(max(self.recipe.train.calibration_batches, 1)):
            yield {TOKENS_NAME: training_chunk(rows, self.length, number).tokens}

    def divergence(self, reference: Any, outputs: Any) -> Tensor:
        """Return the divergence of the next tokens' probabilities, see `TrainingTask`."""
        scores, others = (tree_leaves(result)[0] for result in (reference, outputs))
        return class_divergence(scores, others)

    def calibrate(
        self, synchronization: Synchronization, device: torch.device, stop: Stop, process_group: ProcessGroup
    ) -> None:
        """Calibrate on the first chunks of the training text, with carried state; each process reads its own rows."""
        model = synchronization.model
        with torch.no_grad(), model.at_max_bits():
            state: State | None = None
            with calibrating(model):
                for batch in self.calibration_inputs(process_group.share):
                    _, state = scores_of(model, model.signature, batch[TOKENS_NAME].to(device), state)
                    if synchronization.exchange_ranges(stop()):
                        return
            round_biases(model)

    def evaluate_calibrated(
        self, model: QuantizedModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Final | None:
        """Evaluate on test and validation text, see `TrainingTask`."""
        test, valid = (self._evaluate(split, model, device, step, stop, process_group) for split in ("test", "valid"))
        return None if test is None or valid is None else Final(test, valid)

    def describe(self) -> dict[str, Any]:
        """See `TrainingTask`."""
        digests = {f"{split}_sha256": token_digest(self.ids(split)) for split in ("train", "valid", "test")}
        sizes = {f"{split}_tokens": len(self.ids(split)) for split in ("train", "valid", "test")}
        vocabulary = {
            "level": self.tokenizer.level,
            "size": self.tokenizer.size,
            "sha256": hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest(),
        }
        data = {"name": self.recipe.data.name, **sizes, **digests, "vocabulary": vocabulary}
        return {"data": data, "classes": (), "preprocessing": {}}

    def _evaluate(
        self,
        split: TextSplit,
        model: QuantizedModel,
        device: torch.device,
        step: int,
        stop: Stop,
        process_group: ProcessGroup,
    ) -> Evaluation | None:
        rows = self.recipe.train.eval_batch_size
        chunks = evaluation_chunks(self.ids(split), rows, self.length, self.context, process_group.share)
        return evaluate_text(model, chunks, device=device, step=step, stop=stop, process_group=process_group)


def _check_settings(recipe: Recipe) -> None:
    refuse_weights(recipe)
    wrong = [
        name
        for name, given in (
            ("data.augment", bool(recipe.data.augment)),
            ("train.label_smoothing", recipe.train.label_smoothing > 0.0),
        )
        if given
    ]
    if wrong:
        raise UsageError(
            f"Expected settings for a language model, but got {' and '.join(wrong)}, which it has no use for"
        )


def load_language_modelling(recipe: Recipe) -> LanguageModelling:
    """Open the text of a recipe and build its vocabulary, see `load_task`."""
    settings = recipe.data
    name = settings.name
    if name not in corpora and Path(name).expanduser().exists():
        name = str(Path(name).expanduser().resolve())  # a run may be read from other working directories
    root = None if settings.root is None else Path(settings.root).expanduser().resolve()
    data = settings.model_copy(update={"name": name, "root": None if root is None else str(root)})
    corpus = load_corpus(name, root)
    tokenizer = build_tokenizer(corpus.text("train"), settings.text.level, settings.text.vocabulary_size)
    return LanguageModelling(recipe.model_copy(update={"data": data}), corpus, tokenizer)
