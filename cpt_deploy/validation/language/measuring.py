"""Perplexity of a text in each runtime, and every integer of onnxruntime's products computed a second time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language import TOKENS_NAME, LanguageBundle, LanguageModel, State
from cpt_deploy.bundle.language.manifest import LOGITS_NAME
from cpt_deploy.bundle.sessions import open_session
from cpt_deploy.freezing.language import IntegerLanguageModel, Trace, read_integer_model
from cpt_deploy.validation.language.taps import tap_products

Tokens = npt.NDArray[np.int64]
Step = Callable[[Tokens, Any], tuple[npt.NDArray[np.float32], Any]]
"""A model: tokens, int64 (N, T), and its state (`None` at first) to logits or log-probabilities, and the state."""

CHUNK = 32
"""Tokens of a row that a call reads."""


@dataclass
class Likelihood:
    """How likely a model finds a text.

    Args:
        total: Sum of the negative log-likelihoods, in nats.
        tokens: How many were predicted.
        hits: How many of them were the most probable token.
    """

    total: float = 0.0
    tokens: int = 0
    hits: int = 0

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
        self.total += float((normalizers - chosen).sum())
        self.tokens += targets.size
        self.hits += int((scores.argmax(axis=-1) == targets).sum())


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
    """

    likelihoods: dict[str, Likelihood] = field(default_factory=dict)
    products: list[ProductResult] = field(default_factory=list)
    worst_logit: float = 0.0


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
    bundle: LanguageBundle, rows: Tokens, trained: Step | None = None, provider: str = "cpu"
) -> LanguageMeasurements:
    """Measure a bundle's model on rows of a text: trained model, integer executor and onnxruntime.

    Args:
        bundle: The bundle.
        rows: Tokens, int64 (N, L).
        trained: The trained model, if there is one here.
        provider: Execution provider of onnxruntime.

    Raises:
        BundleError: If onnxruntime cannot load the model, or its integers are of no known kind.
    """
    model = read_integer_model(bundle.quantization["graph"], bundle.load_tensors())
    found = LanguageMeasurements()
    if trained is not None:
        found.likelihoods["trained"] = likelihood(trained, rows, model.context)
    served = LanguageModel(bundle.onnx_path, bundle.manifest, provider=provider)
    found.likelihoods["onnxruntime"] = likelihood(served.run, rows, model.context)
    found.likelihoods["executor"] = _follow(bundle, model, rows, found, provider)
    return found


def _follow(
    bundle: LanguageBundle, model: IntegerLanguageModel, rows: Tokens, found: LanguageMeasurements, provider: str
) -> Likelihood:
    """Run executor and tapped onnxruntime side by side, and compare what they computed."""
    content, names = tap_products(bundle.onnx_path.read_bytes())
    session = open_session(content, where=str(bundle.onnx_path), provider=provider)
    linears = {linear.name: linear for linear in model.linears()}
    results = {name: ProductResult(name) for name in names}
    outputs = [f"tap:{name}.{kind}" for name in names for kind in ("codes", "sums")]
    states = [entry.output for entry in bundle.manifest.states]
    executor, state, own = Likelihood(), None, None
    for tokens, targets, fresh in chunks_of(rows, model.context):
        given = bundle.manifest.initial_state(len(tokens)) if fresh or state is None else state
        logits, *values = session.run([LOGITS_NAME, *states, *outputs], {TOKENS_NAME: tokens, **given})
        state = _next_state(bundle, values)
        integers = dict(zip(outputs, values[len(states) :], strict=True))
        trace = Trace()
        expected, own = model.run(tokens, None if fresh else own, trace)
        executor.add(expected, targets)
        found.worst_logit = max(found.worst_logit, float(np.abs(logits - expected).max()))
        for name, result in results.items():
            codes, sums = integers[f"tap:{name}.codes"], integers[f"tap:{name}.sums"]
            result.compared += sums.size
            result.mismatching += int((linears[name].accumulate(codes) != sums).sum())
            difference = np.abs(codes.astype(np.int16) - trace.codes[name])
            result.codes += codes.size
            result.other_codes += int((difference > 0).sum())
            result.worst_code = max(result.worst_code, int(difference.max()))
    found.products = list(results.values())
    return executor


def _next_state(bundle: LanguageBundle, values: list[npt.NDArray[Any]]) -> State:
    return {entry.input: value for entry, value in zip(bundle.manifest.states, values, strict=False)}
