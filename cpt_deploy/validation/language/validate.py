"""The gate of a language model: perplexity of the served against the trained model, and exact integers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle, EvaluationResult, OnnxRuntimeModel, TextProcessor
from cpt_deploy.bundle.layout import ANNOUNCED
from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.operators import float_operators, unannounced_operators
from cpt_deploy.bundle.runtime.providers import CPU, keeps_operators, provider_name
from cpt_deploy.errors import DataError
from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP, check_allowed, rise_in_percent
from cpt_deploy.validation.gate import operator_reasons
from cpt_deploy.validation.integers.accumulators import bundle_accumulators, overflow_reasons
from cpt_deploy.validation.integers.saturation import (
    LayerSaturation,
    Portability,
    bundle_portability,
    bundle_saturation,
    portability_reasons,
    saturation_entry,
)
from cpt_deploy.validation.language.gate import (
    LanguageReference,
    check_context,
    contradiction_reasons,
    exactness_reasons,
    judge_rise,
    recorded_reasons,
    rise_reasons,
    undecided_reasons,
)
from cpt_deploy.validation.language.measuring import LanguageMeasurements, measure_text, rows_of
from cpt_deploy.validation.performance.software import software_versions
from cpt_deploy.validation.validate import file_contradictions

ROWS = 16
"""Number of parallel rows of the text; each begins with an empty state."""

_TITLES = {"trained": "trained model", "executor": "integer executor", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class LanguageReport:
    """The evidence of a validation.

    Args:
        content: The content of validation.json.
        results: Results for the model card.
        saturation: Each product's bound against 16-bit saturation.
        portability: The reductions if the bundle was exported as portable.
    """

    content: dict[str, Any]
    results: list[EvaluationResult]
    saturation: tuple[LayerSaturation, ...]
    portability: Portability | None

    @property
    def passed(self) -> bool:
        """Whether the model may be served."""
        return bool(self.content["passed"])

    @property
    def verdict(self) -> str:
        """The verdict: "failed", "undecided" or "passed"."""
        return str(self.content["verdict"])

    @property
    def reasons(self) -> list[str]:
        """Why it failed."""
        return list(self.content["reasons"])

    @property
    def undecided(self) -> list[str]:
        """Questions that this text cannot decide."""
        return list(self.content["undecided"])


def validate_language(
    bundle: Bundle,
    text: npt.NDArray[np.integer[Any]],
    dataset: Mapping[str, Any],
    *,
    trained: LanguageReference | None = None,
    max_rise: float | None = MAX_DROP,
    allow_undecided: bool = False,
    require_exact: bool = True,
    provider: str = "cpu",
) -> LanguageReport:
    """Validate a bundle's language model on a text.

    Args:
        bundle: The bundle.
        text: Tokens of the text.
        dataset: Name, split and further description of the text.
        trained: The trained model; without it perplexity is compared with that of the integer executor.
        max_rise: Max rise of perplexity from there to onnxruntime in percent; `None` judges no rise.
        allow_undecided: Whether a bundle also passes if this text cannot decide on the rise.
        require_exact: Whether each integer sum has to equal the executor's, given the same inputs, and the served
            logits have to equal those of the session with intermediate outputs.
        provider: Execution provider of onnxruntime.

    Raises:
        DataError: If the text has fewer than two tokens, or tokens beyond the model's vocabulary.
        UsageError: If `max_rise` is negative.
        ValidationFailedError: If config.json and the integer model have different contexts.
    """
    if max_rise is not None:
        check_allowed(max_rise)
    vocabulary = bundle.expect_processor(TextProcessor).size
    if len(text) < 2 or int(np.max(text)) >= vocabulary:
        raise DataError(
            f"Expected a text of two tokens or more within the model's {vocabulary}, "
            f"but got {len(text)} tokens up to {int(np.max(text, initial=0))}"
        )
    check_context(bundle)
    rows = rows_of(text, ROWS)
    if trained is None:
        found = measure_text(bundle, rows, provider=provider)
    else:
        found = measure_text(bundle, rows, trained.step, rows_of(trained.text, ROWS), provider)
    golden = OnnxRuntimeModel(bundle.onnx_path, bundle.signature, provider=provider).reproduce_golden(bundle.golden)
    cpu, saturation, portability = read_cpu(), bundle_saturation(bundle), bundle_portability(bundle)
    accumulators = bundle_accumulators(bundle)
    floats = _float_operators(bundle, provider)
    verdict = judge_rise(found, MAX_DROP if max_rise is None else max_rise)
    reasons = [
        *contradiction_reasons(bundle, trained),
        *file_contradictions(bundle, saturation),
        *operator_reasons(floats["unannounced"]),
        *overflow_reasons(accumulators),
        *portability_reasons(saturation, portability),
        *recorded_reasons(trained),
        *(exactness_reasons(found) if require_exact else []),
    ]
    if require_exact and not golden.reproduced:
        reasons.append(f"the golden logits differ by {golden.worst:.3g}, more than {golden.tolerance:.3g}")
    undecided = []
    if max_rise is not None and verdict is not None:
        reasons += rise_reasons(verdict, max_rise)
        undecided = undecided_reasons(verdict, max_rise)
    content = {
        "task": bundle.task,
        "model_sha256": bundle.sha256,
        "content_sha256": bundle.content_sha256,
        **_verdict(reasons, undecided, allow_undecided=allow_undecided),
        "dataset": {**dataset, "samples": found.likelihoods["onnxruntime"].tokens, "rows": len(rows)},
        **_measured(found),
        "max_rise_percent": max_rise,
        "non_inferiority": None if verdict is None else asdict(verdict),
        "graph": floats,
        "golden": asdict(golden),
        "saturation": saturation_entry(saturation, cpu),
        "accumulators": [asdict(entry) for entry in accumulators],
        "portability": None if portability is None else asdict(portability),
        "provider": provider_name(provider),
        "cpu": asdict(cpu),
        "versions": software_versions(),
        "validated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    results = [
        EvaluationResult(entry.perplexity, _TITLES[name], dataset["name"], dataset["split"], "perplexity", entry.tokens)
        for name, entry in found.likelihoods.items()
    ]
    return LanguageReport(finite_numbers(content), results, saturation, portability)


def _float_operators(bundle: Bundle, provider: str) -> dict[str, dict[str, int]]:
    """Return the operators that compute in float, and those of them that export did not announce."""
    if not keeps_operators(provider):
        return {"float_operators": {}, "unannounced": {}}
    floats = float_operators(bundle.onnx_path.read_bytes(), provider)
    # other providers compute operators in float for which the CPU has integer kernels
    judged = floats if provider_name(provider) == CPU else {}
    return {
        "float_operators": floats,
        "unannounced": unannounced_operators(judged, bundle.quantization.get(ANNOUNCED)),
    }


def _verdict(reasons: list[str], undecided: list[str], *, allow_undecided: bool) -> dict[str, Any]:
    state = "failed" if reasons else "undecided" if undecided else "passed"
    return {
        "passed": state == "passed" or (state == "undecided" and allow_undecided),
        "verdict": state,
        "reasons": reasons,
        "undecided": undecided,
    }


def _measured(found: LanguageMeasurements) -> dict[str, Any]:
    base = found.likelihoods.get("trained", found.likelihoods["executor"])
    return {
        "runtimes": _runtimes(found),
        "perplexity_rise_percent": rise_in_percent(found.likelihoods["onnxruntime"].loss - base.loss),
        "integers": {
            "compared": sum(product.compared for product in found.products),
            "mismatching": sum(product.mismatching for product in found.products),
            "products": [asdict(product) for product in found.products],
        },
        "worst_logit": found.worst_logit,
        "served_logits": {"values": found.logits, "differing": found.changed_logits, "tokens_apart": found.apart},
    }


def finite_numbers(value: Any) -> Any:
    """Return JSON types with `None` in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(finite_numbers(entry) for entry in value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _runtimes(found: LanguageMeasurements) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "perplexity": entry.perplexity,
            "loss": entry.loss,
            "top1": entry.hits / entry.tokens,
            "tokens": entry.tokens,
        }
        for name, entry in found.likelihoods.items()
    ]
