"""Perplexity of a text in each runtime, and every integer of onnxruntime's products computed a second time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import TOKENS_NAME, LanguageBundle, LanguageModel, State
from cpt_deploy.bundle.language.manifest import LOGITS_NAME
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer.language import IntegerLanguageModel, Trace, read_integer_model
from cpt_deploy.validation.language.taps import tap_products

Tokens = npt.NDArray[np.int64]
Step = Callable[[Tokens, Any], tuple[npt.NDArray[np.float32], Any]]
"""A model: tokens, int64 (N, T), and its state (`None` at first) to logits or log-probabilities, and the state."""

CHUNK = 32
"""Tokens of a row that a call reads."""

BLOCK_CHUNKS = 4
"""Calls that make a block of a row, whose tokens count as one observation of a loss."""

LAST_PLACES = 1e-4
"""Most by which a logit may change when inner integers are looked at, as a share of the greatest."""

A_CODE = 1e-2
"""By how much a code that comes out differently moves logits at most, or else little is left of them, likewise."""


@dataclass
class Likelihood:
    """How likely a model finds a text.

    Args:
        total: Sum of the negative log-likelihoods, in nats.
        tokens: How many were predicted.
        hits: How many of them were the most probable token.
        rows: The same sum of each call, by row, float64 (N,).
        lengths: Tokens of a row in each call.
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
        """Exp of the loss; infinite where float64 holds no such number."""
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
        """Return the summed losses of blocks of neighbouring tokens and their numbers of tokens, (B,) each."""
        sums, lengths = np.stack(self.rows), np.array(self.lengths)
        starts = np.arange(0, len(sums), BLOCK_CHUNKS)
        tokens = np.repeat(np.add.reduceat(lengths, starts), sums.shape[1])
        return np.add.reduceat(sums, starts, axis=0).ravel(), tokens.astype(np.int64)


@dataclass
class ProductResult:
    """One product's integers in onnxruntime.

    Args:
        name: Its module path.
        compared: Integer sums that were computed a second time, from the codes that onnxruntime had.
        mismatching: How many came out differently.
        codes: Codes compared with those of the executor on its own way through the text.
        other_codes: How many of these differ: gates and attention are floats, whose last places can decide a rounding.
        worst_code: By how much at most.
    """

    name: str
    compared: int = 0
    mismatching: int = 0
    codes: int = 0
    other_codes: int = 0
    worst_code: int = 0


@dataclass
class LanguageMeasurements:
    """What was found on a text.

    Args:
        likelihoods: By runtime.
        products: The integers.
        worst_logit: The greatest difference between executor and onnxruntime.
        logits: How many logits were served.
        changed_logits: How many of them differ beyond their last places where inner integers are looked at, so that
            what was compared is not what is served.
        apart: Tokens after which a logit that is served is further from the executor's on its own way than codes that
            differ by one explain.
        first_tokens: How many tokens were read with an empty state.
        first_apart: Those of them after which a logit differs beyond its last places: no code before can have come out
            differently.
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
    """Return a text as parallel rows of equal length, int64 (rows, L); what remains at its end is left out."""
    rows = max(1, min(rows, len(text) // 2))
    length = len(text) // rows
    return np.ascontiguousarray(text[: rows * length], np.int64).reshape(rows, length)


def chunks_of(rows: Tokens, context: int | None = None) -> Iterator[tuple[Tokens, Tokens, bool]]:
    """Yield tokens, those that follow them, int64 (N, T) each, and whether they begin with an empty state.

    The first ones do, and with a limited context those behind each stretch of that many tokens.
    """
    length = rows.shape[1] - 1
    for first in range(0, length, context or length):
        last = min(first + (context or length), length)
        for start in range(first, last, CHUNK):
            end = min(start + CHUNK, last)
            yield rows[:, start:end], rows[:, start + 1 : end + 1], start == first


def likelihood(step: Step, rows: Tokens, context: int | None = None) -> Likelihood:
    """Read all rows, with carried state within the context, and return how likely each next token was."""
    found, state = Likelihood(), None
    for tokens, targets, fresh in chunks_of(rows, context):
        logits, state = step(tokens, None if fresh else state)
        found.add(logits, targets)
    return found


def measure_text(
    bundle: LanguageBundle,
    rows: Tokens,
    trained: Step | None = None,
    trained_rows: Tokens | None = None,
    provider: str = "cpu",
) -> LanguageMeasurements:
    """Measure a bundle's model on rows of a text: trained model, integer executor and onnxruntime.

    Args:
        bundle: The bundle.
        rows: Tokens, int64 (N, L).
        trained: The trained model, if there is one here.
        trained_rows: The text as the trained model reads it; `rows` if None.
        provider: Execution provider of onnxruntime.

    Raises:
        BundleError: If onnxruntime cannot load the model, or its integers are of no known kind.
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
    bundle: LanguageBundle, model: IntegerLanguageModel, rows: Tokens, found: LanguageMeasurements, provider: str
) -> None:
    """Run executor, onnxruntime as it serves, and tapped, side by side, and compare what they computed."""
    content, names = tap_products(bundle.onnx_path.read_bytes())
    served = LanguageModel(bundle.onnx_path, bundle.manifest, provider=provider)
    session = open_session(content, where=str(bundle.onnx_path), provider=provider)
    linears = {linear.name: linear for linear in model.linears()}
    results = {name: ProductResult(name) for name in names}
    outputs = [f"tap:{name}.{kind}" for name in names for kind in ("codes", "sums")]
    states = [entry.output for entry in bundle.manifest.states]
    served_loss, executor_loss = Likelihood(), Likelihood()
    found.likelihoods |= {"onnxruntime": served_loss, "executor": executor_loss}
    state, own, serving = None, None, None
    for tokens, targets, fresh in chunks_of(rows, model.context):
        given = bundle.manifest.initial_state(len(tokens)) if fresh or state is None else state
        logits, *values = session.run([LOGITS_NAME, *states, *outputs], {TOKENS_NAME: tokens, **given})
        state = _next_state(bundle, values)
        integers = dict(zip(outputs, values[len(states) :], strict=True))
        answered, serving = served.run(tokens, None if fresh else serving)
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


def _next_state(bundle: LanguageBundle, values: list[npt.NDArray[Any]]) -> State:
    return {entry.input: value for entry, value in zip(bundle.manifest.states, values, strict=False)}
