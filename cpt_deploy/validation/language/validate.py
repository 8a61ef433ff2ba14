"""The gate of a language model: perplexity of what is served against what was trained, and exact integers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import EvaluationResult
from cpt_deploy.bundle.language import LanguageBundle, LanguageModel
from cpt_deploy.bundle.processor import read_cpu
from cpt_deploy.bundle.providers import provider_name
from cpt_deploy.errors import DataError
from cpt_deploy.validation.accumulators import bundle_accumulators, overflow_reasons
from cpt_deploy.validation.language.measuring import LanguageMeasurements, Step, measure_text, rows_of
from cpt_deploy.validation.saturation import (
    LayerSaturation,
    Portability,
    bundle_portability,
    bundle_saturation,
    portability_reasons,
    saturation_entry,
)
from cpt_deploy.validation.software import software_versions

MAX_RISE = 0.5
"""Percent of perplexity that may be lost between the trained model and onnxruntime."""

ROWS = 16
"""Parallel rows of the text; each begins with an empty state."""

_TITLES = {"trained": "trained model", "executor": "integer executor", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class LanguageReport:
    """The evidence of a validation.

    Args:
        content: As it stands in validation.json.
        results: For the model card.
        saturation: Each product's distance from 16-bit saturation.
        portability: What the bundle gave up if it was exported to be portable.
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
    def reasons(self) -> list[str]:
        """Why not."""
        return list(self.content["reasons"])


def validate_language(
    bundle: LanguageBundle,
    text: npt.NDArray[np.integer[Any]],
    dataset: Mapping[str, Any],
    *,
    trained: Step | None = None,
    max_rise: float = MAX_RISE,
    require_exact: bool = True,
    provider: str = "cpu",
) -> LanguageReport:
    """Measure a bundle's language model on a text.

    Args:
        bundle: The bundle.
        text: Its tokens.
        dataset: Name and split of the text, and what else describes it.
        trained: The trained model; without it perplexity is compared with that of the integer executor.
        max_rise: Percent by which perplexity may rise from there to onnxruntime.
        require_exact: Whether each integer sum has to be the executor's, given the same codes.
        provider: Execution provider of onnxruntime.

    Raises:
        DataError: If the text has fewer than two tokens, or tokens beyond the model's vocabulary.
    """
    if len(text) < 2 or int(np.max(text)) >= bundle.manifest.vocabulary:
        raise DataError(
            f"Expected a text of two tokens or more within the model's {bundle.manifest.vocabulary}, "
            f"but got {len(text)} tokens up to {int(np.max(text, initial=0))}"
        )
    rows = rows_of(text, ROWS)
    found = measure_text(bundle, rows, trained, provider)
    golden = LanguageModel(bundle.onnx_path, bundle.manifest, provider=provider).reproduce_golden(bundle.golden)
    compared = sum(product.compared for product in found.products)
    mismatching = sum(product.mismatching for product in found.products)
    base = found.likelihoods.get("trained", found.likelihoods["executor"])
    rise = (found.likelihoods["onnxruntime"].perplexity / base.perplexity - 1) * 100
    reasons = []
    if not rise <= max_rise:
        reasons.append(f"perplexity rose by {rise:.3f} %, more than {max_rise} %")
    if require_exact and mismatching:
        reasons.append(f"{mismatching} of {compared} integers differ from the exact executor's")
    if require_exact and not golden.within:
        reasons.append(f"the golden logits differ by {golden.worst:.3g}, more than {bundle.golden.tolerance:.3g}")
    cpu, saturation, portability = read_cpu(), bundle_saturation(bundle), bundle_portability(bundle)
    accumulators = bundle_accumulators(bundle)
    reasons += [*overflow_reasons(accumulators), *portability_reasons(saturation, portability)]
    content = {
        "kind": "language-model",
        "model_sha256": bundle.sha256,
        "passed": not reasons,
        "reasons": reasons,
        "dataset": {**dataset, "samples": base.tokens, "rows": len(rows)},
        "runtimes": _runtimes(found),
        "perplexity_rise_percent": rise,
        "max_rise_percent": max_rise,
        "integers": {
            "compared": compared,
            "mismatching": mismatching,
            "products": [asdict(product) for product in found.products],
        },
        "worst_logit": found.worst_logit,
        "golden": {**asdict(golden), "tolerance": bundle.golden.tolerance},
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
    return LanguageReport(content, results, saturation, portability)


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
