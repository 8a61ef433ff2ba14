"""Measure a language model: perplexity of a text in each runtime, and every integer sum of onnxruntime recomputed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, next_states
from cpt_deploy.integer.language import IntegerLanguageModel, Trace, read_integer_model
from cpt_deploy.signature import OUTPUT_NAME, TOKENS_NAME
from cpt_deploy.validation.language.intermediate_outputs import with_product_outputs

Tokens = npt.NDArray[np.int64]
Step = Callable[[Tokens, Any], tuple[npt.NDArray[np.float32], Any]]
"""A model: maps tokens, int64 (N, T), and a state (initially `None`) to logits or log-probabilities, and the state."""

CHUNK = 32
"""Number of tokens per row in a call."""

BLOCK_CHUNKS = 4
"""Number of calls per block of a row; the tokens of a block count as one observation of the loss."""

LAST_PLACES = 1e-4
"""Max change of a logit when intermediate outputs are added, as a share of the max logit."""

A_CODE = 1e-2
"""Max change of a logit caused by a few integers that differ by one, likewise; a real error changes logits more."""


@dataclass
class Likelihood:
    """The likelihood of a text under a model.

    Args:
        total: Sum of the negative log-likelihoods, in nats.
        tokens: Number of predicted tokens.
        hits: Number of tokens that were the most probable one.
        rows: Sum of the negative log-likelihoods per row in each call, float64 (N,).
        lengths: Number of tokens per row in each call.
    """

    total: float = 0.0
    tokens: int = 0
    hits: int = 0
    rows: list[npt.NDArray[np.float64]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """Exp of the loss; infinity if it overflows float64."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    def add(self, logits: npt.NDArray[np.float32], targets: Tokens) -> None:
        """Add logits, (N, T, V), of targets, (N, T)."""
        scores = logits.astype(np.float64)
        greatest = scores.max(axis=-1)
        normalizers = greatest + np.log(np.exp(scores - greatest[..., None]).sum(axis=-1))
        chosen = np.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        rows = (normalizers - chosen).sum(axis=1)
        self.rows.append(rows)
        self.lengths.append(targets.shape[1])
        self.total += float(rows.sum())
        self.tokens += targets.size
        self.hits += int((scores.argmax(axis=-1) == targets).sum())

    def blocks(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return the summed losses of blocks of adjacent tokens and their numbers of tokens, (B,) each."""
        sums, lengths = np.stack(self.rows), np.array(self.lengths)
        starts = np.arange(0, len(sums), BLOCK_CHUNKS)
        tokens = np.repeat(np.add.reduceat(lengths, starts), sums.shape[1])
        return np.add.reduceat(sums, starts, axis=0).ravel(), tokens.astype(np.int64)


@dataclass
class ProductResult:
    """The integers of one product in onnxruntime.

    Args:
        name: Its module path.
        compared: Number of integer sums recomputed from onnxruntime's own inputs (replay from the boundary).
        mismatching: Number of differing sums.
        codes: Number of quantized inputs compared with those of the free-running executor.
        other_codes: Number of differing ones: gates and attention are floats, whose last digits can decide a rounding.
        worst_code: The max difference of these.
    """

    name: str
    compared: int = 0
    mismatching: int = 0
    codes: int = 0
    other_codes: int = 0
    worst_code: int = 0


@dataclass
class LanguageMeasurements:
    """The measurements on a text.

    Args:
        likelihoods: Likelihood in each runtime.
        products: Agreement of the integers of each product.
        worst_logit: The max difference between logits of executor and onnxruntime.
        logits: Number of served logits.
        changed_logits: Number of served logits that change, beyond their last digits, when intermediate outputs are
            added, so that the compared session is not the serving one.
        apart: Number of tokens at which a served logit differs from the free-running executor's by more than integers
            that differ by one explain.
        first_tokens: Number of tokens read with an empty state.
        first_apart: Number of these at which a logit differs beyond its last digits: no earlier integer can differ.
    """

    likelihoods: dict[str, Likelihood] = field(default_factory=dict)
    products: list[ProductResult] = field(default_factory=list)
    worst_logit: float = 0.0
    logits: int = 0
    changed_logits: int = 0
    apart: int = 0
    first_tokens: int = 0
    first_apart: int = 0


def rows_of(text: npt.NDArray[np.integer[Any]], rows: int) -> Tokens:
    """Return a text as parallel rows of equal length, int64 (rows, L); the remainder at its end is omitted."""
    rows = max(1, min(rows, len(text) // 2))
    length = len(text) // rows
    return np.ascontiguousarray(text[: rows * length], np.int64).reshape(rows, length)


def chunks_of(rows: Tokens, context: int | None = None) -> Iterator[tuple[Tokens, Tokens, bool]]:
    """Yield tokens and the tokens that follow them, int64 (N, T) each, and whether they begin with an empty state.

    The first chunk does, and with a limited context each chunk that starts a new context.
    """
    length = rows.shape[1] - 1
    for first in range(0, length, context or length):
        last = min(first + (context or length), length)
        for start in range(first, last, CHUNK):
            end = min(start + CHUNK, last)
            yield rows[:, start:end], rows[:, start + 1 : end + 1], start == first


def likelihood(step: Step, rows: Tokens, context: int | None = None) -> Likelihood:
    """Run a model on all rows, carrying the state within the context, and return the likelihood of the next tokens."""
    found, state = Likelihood(), None
    for tokens, targets, fresh in chunks_of(rows, context):
        logits, state = step(tokens, None if fresh else state)
        found.add(logits, targets)
    return found


def measure_text(
    bundle: Bundle,
    rows: Tokens,
    trained: Step | None = None,
    trained_rows: Tokens | None = None,
    provider: str = "cpu",
) -> LanguageMeasurements:
    """Measure a bundle's model on rows of a text: trained model, integer executor and onnxruntime.

    Args:
        bundle: The bundle.
        rows: Tokens, int64 (N, L).
        trained: The trained model, if available.
        trained_rows: The text in the trained model's tokens; `rows` if None.
        provider: Execution provider of onnxruntime.

    Raises:
        BundleError: If onnxruntime cannot load the model, or its integer model is of an unknown kind.
    """
    model = read_integer_model(bundle.quantization["graph"], bundle.load_tensors())
    found = LanguageMeasurements()
    if trained is not None:
        found.likelihoods["trained"] = likelihood(
            trained, rows if trained_rows is None else trained_rows, model.context
        )
    _follow(bundle, model, rows, found, provider)
    return found


def _follow(
    bundle: Bundle, model: IntegerLanguageModel, rows: Tokens, found: LanguageMeasurements, provider: str
) -> None:
    """Run executor, serving session and session with intermediate outputs side by side, and compare their results."""
    content, names = with_product_outputs(bundle.onnx_path.read_bytes())
    served = OnnxRuntimeModel(bundle.onnx_path, bundle.signature, provider=provider)
    observed = OnnxRuntimeModel(content, bundle.signature, provider=provider)
    linears = {linear.name: linear for linear in model.linears()}
    results = {name: ProductResult(name) for name in names}
    served_loss, executor_loss = Likelihood(), Likelihood()
    found.likelihoods |= {"onnxruntime": served_loss, "executor": executor_loss}
    own: Any = None
    state: dict[str, npt.NDArray[Any]] = {}
    serving: dict[str, npt.NDArray[Any]] = {}
    for tokens, targets, fresh in chunks_of(rows, model.context):
        if fresh:
            state, serving = {}, {}
        integers = observed.trace({TOKENS_NAME: tokens, **state})
        outputs = served.run({TOKENS_NAME: tokens, **serving})
        state, serving = next_states(bundle.signature, integers), next_states(bundle.signature, outputs)
        logits, answered = integers[OUTPUT_NAME], outputs[OUTPUT_NAME]
        served_loss.add(answered, targets)
        found.logits += answered.size
        greatest = float(np.abs(answered).max())
        found.changed_logits += int((~(np.abs(logits - answered) <= LAST_PLACES * greatest)).sum())
        trace = Trace()
        expected, own = model.run(tokens, None if fresh else own, trace)
        executor_loss.add(expected, targets)
        distance = np.abs(answered - expected).max(axis=-1)
        found.apart += int((~(distance <= A_CODE * greatest)).sum())
        if fresh:
            found.first_tokens += len(distance)
            found.first_apart += int((~(distance[:, 0] <= LAST_PLACES * greatest)).sum())
        found.worst_logit = max(found.worst_logit, float(distance.max()))
        for name, result in results.items():
            codes, sums = integers[f"tap:{name}.codes"], integers[f"tap:{name}.sums"]
            result.compared += sums.size
            result.mismatching += int((linears[name].accumulate(codes) != sums).sum())
            difference = np.abs(codes.astype(np.int16) - trace.codes[name])
            result.codes += codes.size
            result.other_codes += int((difference > 0).sum())
            result.worst_code = max(result.worst_code, int(difference.max()))
    found.products = list(results.values())
