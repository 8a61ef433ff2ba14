"""The verdict on a language model: reasons why a bundle must not be served, and undecided questions, as sentences."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.bundle.layout import TOKENIZER_FILE
from cpt_deploy.bundle.processors.text_processor import context_of
from cpt_deploy.errors import ValidationFailedError
from cpt_deploy.integer.language import read_integer_model
from cpt_deploy.validation.accuracy.noninferiority import NonInferiority, allowed_rise, judge_losses, rise_in_percent
from cpt_deploy.validation.gate import needed_samples
from cpt_deploy.validation.language.measuring import LanguageMeasurements, Step

RECORDED_RISE = 0.5
"""Max difference in percent of the trained model's perplexity from its report: another device sums in another order."""

MOST_APART, MOST_FIRST_APART = 0.05, 0.2
"""Max shares of tokens, and of first tokens, at which served logits may differ from the free-running executor's."""


@dataclass(frozen=True, eq=False)
class LanguageReference:
    """A trained language model with the text in its own tokens.

    Args:
        step: The model.
        text: The text, tokenized by its own tokenizer.
        tokenizer: Content of its tokenizer.json.
        source: Origin of these, for messages.
        recorded: Perplexity of this text as measured in training, and measured again in the same way; `None` if
            training measured another text.
    """

    step: Step
    text: npt.NDArray[np.integer[Any]]
    tokenizer: str
    source: str = "the run"
    recorded: tuple[float, float] | None = None


def judge_rise(found: LanguageMeasurements, max_rise: float) -> NonInferiority | None:
    """Judge the rise of the loss from the trained model, or else the executor, to onnxruntime.

    Returns:
        The verdict; `None` if the trained model read other tokens, so that there are no pairs.
    """
    base = found.likelihoods.get("trained", found.likelihoods["executor"])
    (first, tokens), (second, others) = base.blocks(), found.likelihoods["onnxruntime"].blocks()
    if not np.array_equal(tokens, others):
        return None
    return judge_losses(first, second, tokens, allowed_rise(max_rise))


def check_context(bundle: Bundle) -> None:
    """Raise a `ValidationFailedError` if the contexts of a bundle and its integer model differ: it could not be run."""
    context = read_integer_model(bundle.quantization["graph"], bundle.load_tensors()).context
    described = context_of(bundle.signature)
    if context != described:
        raise ValidationFailedError(
            f"Expected config.json of {bundle.path} to say the integer model's context of {context}, but got "
            f"{described}",
            hint="export the bundle again",
        )


def contradiction_reasons(bundle: Bundle, trained: LanguageReference | None) -> list[str]:
    """Return contradictions of a bundle's files with the run or each other, as sentences."""
    found = contradictions(bundle)
    own = hashlib.sha256(trained.tokenizer.encode()).hexdigest() if trained is not None else None
    if trained is not None and own != bundle.digests[TOKENIZER_FILE]:
        found.append(f"tokenizer.json is not that of {trained.source}")
    return found


def recorded_reasons(trained: LanguageReference | None) -> list[str]:
    """Return a reason if the trained model's perplexity here differs from the recorded one."""
    if trained is None or trained.recorded is None:
        return []
    recorded, again = trained.recorded
    if abs(again / recorded - 1) * 100 <= RECORDED_RISE:
        return []
    return [f"the trained model has a perplexity of {again:.4g} here, but {recorded:.4g} by its own report"]


def exactness_reasons(found: LanguageMeasurements) -> list[str]:
    """Return reasons for integers and logits that differ from the integer executor's or from the served ones."""
    compared = sum(product.compared for product in found.products)
    mismatching = sum(product.mismatching for product in found.products)
    reasons = []
    if mismatching:
        reasons.append(f"{mismatching} of {compared} integers differ from the exact executor's")
    if found.changed_logits:
        reasons.append(
            f"{found.changed_logits} of {found.logits} logits that are served are not those of the session whose "
            "integers were compared"
        )
    tokens = found.likelihoods["onnxruntime"].tokens
    for apart, count, most, which in (
        (found.first_apart, found.first_tokens, MOST_FIRST_APART, "first tokens"),
        (found.apart, tokens, MOST_APART, "tokens"),
    ):
        if apart > max(1, most * count):
            reasons.append(f"after {apart} of {count} {which} the logits that are served are not the executor's")
    return reasons


def rise_interval(verdict: NonInferiority) -> str:
    """Return a rise of perplexity with its interval, as "0.02 % (-0.01 to 0.05)"."""
    loss, low, high = (rise_in_percent(nats) for nats in (verdict.loss, verdict.low, verdict.high))
    return f"{loss:.3f} % ({low:.3f} to {high:.3f})"


def rise_reasons(verdict: NonInferiority, max_rise: float) -> list[str]:
    """Return a reason if the rise exceeds the allowed one; a rise that is not finite always does."""
    if verdict.state == "failed" or not math.isfinite(verdict.loss):
        return [f"perplexity rose by {rise_interval(verdict)}, more than {max_rise:g} %"]
    return []


def undecided_reasons(verdict: NonInferiority, max_rise: float) -> list[str]:
    """Return a sentence if this text is too short to decide on the rise."""
    if verdict.state != "undecided":
        return []
    return [
        f"whether perplexity rose by more than {max_rise:g} % cannot be decided from {verdict.samples:,} tokens: it "
        f"rose by {rise_interval(verdict)}; {needed_samples(verdict, 'tokens')}"
    ]
