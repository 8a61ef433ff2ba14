"""The sweep of a language model: perplexity, and latency of a token."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle, OnnxRuntimeModel, next_states
from cpt_deploy.signature import TOKENS_NAME
from cpt_deploy.tasks.interface import Entry
from cpt_deploy.tasks.sweeping import bits_cells, integers_cell
from cpt_deploy.tasks.text_generation.validation import test_tokens, trained_step
from cpt_deploy.training import load_language_model
from cpt_deploy.validation.language.measuring import Tokens, likelihood, rows_of
from cpt_deploy.validation.language.validate import ROWS
from cpt_deploy.validation.performance.timing import interleaved


class TextSweep:
    """See `SweptRun`.

    Args:
        run_dir: The run.
        data_dir: Folder of the corpus; None is the recipe's.
        limit: Number of tokens of the test text; None is all.
    """

    columns: tuple[str, ...] = (
        "weights", "activations", "perplexity", "integers that differ", "model.onnx", "weights at their bits",
        "latency",
    )  # fmt: skip
    quality_label = "perplexity in onnxruntime"
    latency_label = "one token, one thread"

    def __init__(self, run_dir: Path, data_dir: Path | None, limit: int | None) -> None:
        self.run, self.data_dir, self.limit = load_language_model(run_dir), data_dir, limit

    @property
    def samples(self) -> int:
        """Number of predicted tokens."""
        rows, length = self._rows.shape
        return int(rows * (length - 1))

    @cached_property
    def _rows(self) -> Tokens:
        root = self.data_dir or self.run.recipe.data.root
        text = test_tokens(
            self.run.tokenizer, self.run.recipe.data.name, None if root is None else Path(root), self.limit
        )
        return rows_of(text, ROWS)

    def figures(self, bundle: Bundle) -> dict[str, Any]:
        """Return perplexity in onnxruntime."""
        assert bundle.validation is not None
        runtimes = {runtime["name"]: runtime for runtime in bundle.validation["runtimes"]}
        return {"perplexity": runtimes["onnxruntime"]["perplexity"]}

    def compare(self, bundles: Sequence[Bundle], rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure the latency of one token after others on one thread, and the trained model at max_bits."""
        trained = likelihood(trained_step(self.run.model), self._rows, self.run.model.context)
        calls = {str(bundle.path): _next_token(bundle) for bundle in bundles}
        times = interleaved(calls, rounds=rounds)
        timed = [{"milliseconds": 1e3 * statistics.median(times[str(bundle.path)])} for bundle in bundles]
        return {"trained_perplexity": trained.perplexity}, timed

    def summary(self, document: Mapping[str, Any]) -> str:
        """See `SweptRun`."""
        dataset = document["dataset"]
        return (
            f"{document['run']} on {dataset['samples']:,} tokens of {dataset['name']} ({dataset['split']}); trained "
            f"model at max_bits {document['trained_perplexity']:.3f}; one token on one thread"
        )

    def row(self, entry: Entry, document: Mapping[str, Any]) -> tuple[str, ...]:
        """See `SweptRun`."""
        return (
            *bits_cells(entry),
            f"{entry['perplexity']:.3f}",
            integers_cell(entry),
            readable.size(entry["onnx_bytes"]),
            readable.size(entry["weights_bytes"]),
            f"{entry['milliseconds']:.3f} ms",
        )

    def quality(self, entry: Entry) -> tuple[float, float, float]:
        """Return perplexity; it has no interval here, since all exports read the same text."""
        return (float(entry["perplexity"]),) * 3

    def trained_quality(self, document: Mapping[str, Any]) -> float:
        """See `SweptRun`."""
        return float(document["trained_perplexity"])


def _next_token(bundle: Bundle) -> Callable[[], object]:
    """Return a function that computes the last token of a golden text after the others."""
    model, tokens = OnnxRuntimeModel(bundle.onnx_path, bundle.signature), bundle.golden.inputs[TOKENS_NAME][:1]
    before, last = tokens[:, :-1], {TOKENS_NAME: tokens[:, -1:]}
    states = next_states(bundle.signature, model.run({TOKENS_NAME: before})) if before.size else {}
    return partial(model.run, {**last, **states})
