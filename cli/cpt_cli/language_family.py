"""A sweep of a language model: perplexity, and latency of a token."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.language_export import export_language_run
from cpt_cli.language_validation import ValidateOptions, measure_language_bundle, test_tokens, trained_step
from cpt_cli.sweep import Entry, bits_cells, integers_cell
from cpt_cli.workflow import ExportOptions

if TYPE_CHECKING:
    from cpt_deploy.bundle.language import LanguageBundle
    from cpt_deploy.bundle.opened import OpenedBundle
    from cpt_deploy.training import TrainedLanguageModel
    from cpt_deploy.validation.language.measuring import Tokens


class LanguageFamily:
    """See `sweep.Family`.

    Args:
        run_dir: The run.
        data_dir: Folder that holds the corpus; the recipe's if None.
        limit: How many tokens of the test text; all if None.
    """

    columns: tuple[str, ...] = (
        "weights", "activations", "perplexity", "integers that differ", "model.onnx", "weights at their bits",
        "latency",
    )  # fmt: skip
    quality_label = "perplexity in onnxruntime"
    latency_label = "one token, one thread"

    def __init__(self, run_dir: Path, data_dir: Path | None, limit: int | None) -> None:
        self.run_dir, self.data_dir, self.limit = run_dir, data_dir, limit

    @cached_property
    def run(self) -> "TrainedLanguageModel":
        """See `Family`."""
        from cpt_deploy.training import load_language_model

        return load_language_model(self.run_dir)

    @property
    def samples(self) -> int:
        """Tokens that are predicted."""
        rows, length = self._rows.shape
        return int(rows * (length - 1))

    @cached_property
    def _rows(self) -> "Tokens":
        from cpt_deploy.validation.language.measuring import rows_of
        from cpt_deploy.validation.language.validate import ROWS

        return rows_of(test_tokens(self.run.tokenizer, self.run.recipe.data.name, self._root, self.limit), ROWS)

    @property
    def _root(self) -> Path | None:
        root = self.data_dir or self.run.recipe.data.root
        return None if root is None else Path(root)

    def open(self, path: Path) -> "LanguageBundle":
        """See `Family`."""
        from cpt_deploy.bundle.language import LanguageBundle

        return LanguageBundle.open(path)

    def export(self, path: Path, options: ExportOptions) -> None:
        """See `Family`."""
        export_language_run(self.run_dir, options, path, self.data_dir)

    def validate(self, path: Path) -> None:
        """See `Family`."""
        name = self.run.recipe.data.name
        options = ValidateOptions(
            data=name,
            data_dir=self._root,
            run=self.run_dir,
            limit=self.limit,
            max_rise=None,
            require_exact=False,
            provider="cpu",
            no_gate=True,
        )
        measure_language_bundle(self.open(path), name, options)

    def figures(self, bundle: "OpenedBundle") -> dict[str, Any]:
        """Return perplexity in onnxruntime."""
        assert bundle.validation is not None
        runtimes = {runtime["name"]: runtime for runtime in bundle.validation["runtimes"]}
        return {"perplexity": runtimes["onnxruntime"]["perplexity"]}

    def compare(self, bundles: Sequence["OpenedBundle"], rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Time one token after some on one thread, and measure the trained model at its upper bound."""
        from cpt_deploy.validation.language.measuring import likelihood
        from cpt_deploy.validation.performance.timing import interleaved

        trained = likelihood(trained_step(self.run.model), self._rows, self.run.model.context)
        calls = {str(bundle.path): _next_token(self.open(bundle.path)) for bundle in bundles}
        times = interleaved(calls, rounds=rounds)
        timed = [{"milliseconds": 1e3 * statistics.median(times[str(bundle.path)])} for bundle in bundles]
        return {"trained_perplexity": trained.perplexity}, timed

    def summary(self, document: Mapping[str, Any]) -> str:
        """See `Family`."""
        dataset = document["dataset"]
        return (
            f"{document['run']} on {dataset['samples']:,} tokens of {dataset['name']} ({dataset['split']}); trained "
            f"model at its upper bound {document['trained_perplexity']:.3f}; one token on one thread"
        )

    def row(self, entry: Entry, document: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Family`."""
        return (
            *bits_cells(entry),
            f"{entry['perplexity']:.3f}",
            integers_cell(entry),
            formats.size(entry["onnx_bytes"]),
            formats.size(entry["weights_bytes"]),
            f"{entry['milliseconds']:.3f} ms",
        )

    def quality(self, entry: Entry) -> tuple[float, float, float]:
        """Return perplexity; all exports read the same text, so it has no interval of its own here."""
        return (float(entry["perplexity"]),) * 3

    def trained_quality(self, document: Mapping[str, Any]) -> float:
        """See `Family`."""
        return float(document["trained_perplexity"])


def _next_token(bundle: "LanguageBundle") -> Callable[[], object]:
    """Return what computes the last token of a golden text behind the others."""
    from cpt_deploy.bundle.language import LanguageModel

    model, tokens = LanguageModel(bundle.onnx_path, bundle.manifest), bundle.golden.tokens[:1]
    before = tokens[:, :-1]
    state = model.run(before)[1] if before.size else None
    return partial(model.run, tokens[:, -1:], state)
