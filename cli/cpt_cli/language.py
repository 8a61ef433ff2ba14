"""What commands do with language models: from a run to a bundle, and its validation on a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out
from cpt_cli.widths import Widths, given_widths
from cpt_cli.workflow import TRAINED_DIGEST, ExportOptions, dataset_name, find_run, is_run_of, shippable
from cpt_deploy.errors import UsageError, ValidationFailedError

if TYPE_CHECKING:
    from cpt_deploy.bundle.language import LanguageBundle
    from cpt_deploy.training import TrainedLanguageModel
    from cpt_deploy.validation.language.measuring import Step
    from cpt_deploy.validation.language.validate import LanguageReport

TOKENIZER = "tokenizer.json"
SETTLE_CHUNKS = 64
"""Chunks of training text on which ranges are estimated anew at other bits."""


@dataclass(frozen=True)
class ValidateOptions:
    """What the validation of a language model can be asked for; see `cpt validate`."""

    data: str | None
    data_dir: Path | None
    run: Path | None
    limit: int | None
    max_rise: float | None
    require_exact: bool | None
    provider: str


def is_language_run(run_dir: Path) -> bool:
    """Return whether a run is one of a language model: it has a vocabulary."""
    return (run_dir / TOKENIZER).is_file() and (run_dir / "recipe.yaml").is_file()


def export_language(run_dir: Path, options: ExportOptions, destination: Path | None) -> None:
    """Freeze the language model of a run, write its bundle, and show it.

    Raises:
        UsageError: If the options are for images, or the run never trained at these bits.
        ConversionError: If the model has no integer form.
        CheckpointError: If the run is unfinished or damaged.
        BundleError: If the bundle cannot be written.
    """
    bundle = export_language_run(run_dir, options, destination)
    from cpt_deploy.bundle.language import LanguageModel

    check = LanguageModel(bundle.onnx_path, bundle.manifest).reproduce_golden(bundle.golden)
    out.fields(
        f"Exported {bundle.name} with weights of {bundle.facts['weight_bits']} bits, activations of "
        f"{bundle.facts['activation_bits']}",
        {
            "bundle": formats.path(bundle.path),
            "model.onnx": f"{formats.size(bundle.onnx_path.stat().st_size)}, sha256 {bundle.sha256[:16]}…",
            "tokens": f"{bundle.manifest.vocabulary:,}, {bundle.facts['tokens']} level",
            "in onnxruntime": f"golden logits differ by {check.worst:.2g} at most, "
            f"{bundle.golden.tolerance:.2g} are allowed",
        },
    )
    if out.quiet:
        out.line(formats.path(bundle.path))
    sizes = {file.name: file.stat().st_size for file in sorted(bundle.path.iterdir())}
    out.result(
        {
            "bundle": bundle.path,
            "name": bundle.name,
            "facts": bundle.facts,
            "sha256": bundle.sha256,
            "files_bytes": sizes,
            "golden": check,
        }
    )
    out.hint(f"cpt validate {formats.path(bundle.path)} --data {bundle.facts['dataset']}")


def export_language_run(run_dir: Path, options: ExportOptions, destination: Path | None = None) -> "LanguageBundle":
    """Freeze the language model of a run and write its bundle; see `export_language`."""
    from cpt_deploy.data.text import load_corpus
    from cpt_deploy.export.language.bundle_export import LanguageIdentity, export_language_bundle
    from cpt_deploy.training import load_language_model

    _check_options(options)
    run = load_language_model(run_dir)
    widths = given_widths(run, options.bits, options.activation_bits, force=options.force)
    data = run.recipe.data
    corpus = load_corpus(data.name, None if data.root is None else Path(data.root))
    _settle(run, widths, corpus.text("train"))
    text = run.tokenizer.encode(corpus.text("test"))
    identity = LanguageIdentity(
        name=run.recipe.name,
        architecture=run.recipe.model.name,
        tokenizer=run.tokenizer,
        facts={
            "dataset": dataset_name(run.recipe),
            TRAINED_DIGEST: run.weights_sha256,
            "trained_perplexity": run.report.test.perplexity,
            **widths.facts,
        },
        recipe=shippable(run.recipe),
    )
    return export_language_bundle(
        run.model,
        destination or run_dir / widths.name,
        identity,
        text,
        weight_bits=widths.weights,
        activation_bits=widths.activations,
    )


def validate_language_bundle(bundle: "LanguageBundle", options: ValidateOptions) -> None:
    """Measure a language model on the test text of a corpus, or on its golden sample, and keep the evidence.

    Raises:
        ValidationFailedError: If perplexity rose too far or an integer differs.
        CptError: If the corpus or the run cannot be read.
    """
    if options.data is None:
        _check_golden(bundle, options.provider)
        return
    from cpt_deploy.bundle.language import update_language_validation
    from cpt_deploy.data.text import load_corpus
    from cpt_deploy.validation.language.validate import MAX_RISE, validate_language

    corpus = load_corpus(options.data, options.data_dir)
    tokens = bundle.text.tokenizer.encode(corpus.text("test"))
    tokens = tokens if options.limit is None else tokens[: options.limit + 1]
    name = options.data if ":" in options.data else Path(options.data).name
    trained = _trained(bundle, options.run)
    report = validate_language(
        bundle,
        tokens,
        {"name": name, "split": "test"},
        trained=trained,
        max_rise=MAX_RISE if options.max_rise is None else options.max_rise,
        require_exact=options.provider == "cpu" if options.require_exact is None else options.require_exact,
        provider=options.provider,
    )
    update_language_validation(bundle, report.content, report.results)
    _show_report(report)
    out.result({"bundle": bundle.path, **report.content})
    if not report.passed:
        raise ValidationFailedError("; ".join(report.reasons), hint="validation.json in the bundle has the details")
    out.hint(f"cpt serve {formats.path(bundle.path)}")


def _check_options(options: ExportOptions) -> None:
    for_images = {
        "--budget": options.budget is not None,
        "--portable": options.portable,
        "--activations symmetric": options.symmetric,
        "--opset": options.opset is not None,
        "--format": len(set(options.formats) - {"onnx", "safetensors"}) > 0,
    }
    given = [name for name, used in for_images.items() if used]
    if given:
        raise UsageError(f"Expected options that language models have, but got {', '.join(given)}")


def _settle(run: "TrainedLanguageModel", widths: Widths, text: str) -> None:
    """Estimate the activation ranges anew on training text, unless they are those of training's upper bound."""
    import torch

    from cpt_deploy.data.text import training_chunk, training_rows
    from cpt_deploy.quantization import observing

    upper = run.recipe.precision.upper
    if widths.weights == upper and widths.activations == upper:
        return
    rows = training_rows(run.tokenizer.encode(text), run.recipe.train.batch_size)
    model, state = run.model, None
    out.note(f"estimating activation ranges at {widths.weights} bits on {SETTLE_CHUNKS} chunks of training text")
    with torch.no_grad(), model.upper_bound(widths.weights, widths.activations), observing(model):
        for number in range(SETTLE_CHUNKS):
            chunk = training_chunk(rows, run.recipe.data.text.sequence, number)
            _, state = model(chunk.tokens, None if chunk.first else state)
            state = state if model.carries_state else None


def _trained(bundle: "LanguageBundle", run_dir: Path | None) -> "Step | None":
    """Return the trained model that a bundle comes from, if it is here."""
    if run_dir is not None and not is_run_of(run_dir, bundle):
        raise UsageError(
            f"Expected the run that {formats.path(bundle.path)} was exported from, but {formats.path(run_dir)} "
            "has other weights",
        )
    found = run_dir or find_run(bundle)
    if found is None:
        out.note("the run that the bundle comes from is not here: compared with the integer executor alone")
        return None
    import torch

    from cpt_deploy.training import load_language_model

    model = load_language_model(found).model
    bits = bundle.facts["weight_bits"], bundle.facts["activation_bits"]

    def step(tokens: Any, state: Any) -> Any:
        with torch.no_grad(), model.upper_bound(*bits):
            scores, after = model(torch.from_numpy(tokens), state)
        return scores.numpy(), after

    return step


def _check_golden(bundle: "LanguageBundle", provider: str) -> None:
    from cpt_deploy.bundle.language import LanguageModel

    check = LanguageModel(bundle.onnx_path, bundle.manifest, provider=provider).reproduce_golden(bundle.golden)
    out.line(
        f"{'passed' if check.within else 'FAILED'}: the golden logits differ by {check.worst:.2g} at most, "
        f"{bundle.golden.tolerance:.2g} are allowed; checksums hold"
    )
    out.result({"passed": check.within, "bundle": bundle.path, "golden": check})
    if not check.within:
        raise ValidationFailedError(
            f"Expected the golden logits within {bundle.golden.tolerance:.3g}, but they differ by {check.worst:.3g}"
        )
    out.hint(f"cpt validate {formats.path(bundle.path)} --data {bundle.facts.get('dataset', 'NAME')}")


def _show_report(report: "LanguageReport") -> None:
    content = report.content
    out.table(
        ("model", "perplexity", "loss", "most probable token"),
        [
            (entry["name"], f"{entry['perplexity']:.3f}", f"{entry['loss']:.5f}", formats.share(entry["top1"]))
            for entry in content["runtimes"]
        ],
        title=f"{content['dataset']['samples']:,} tokens of {content['dataset']['name']}",
    )
    integers = content["integers"]
    codes = sum(product["codes"] for product in integers["products"])
    others = sum(product["other_codes"] for product in integers["products"])
    out.line(
        f"{'passed' if report.passed else 'FAILED'}: perplexity {content['perplexity_rise_percent']:+.4f} %, "
        f"{integers['mismatching']:,} of {integers['compared']:,} integer sums differ given the same codes; on their "
        f"own way {others:,} of {codes:,} codes differ, logits by {content['worst_logit']:.2g} at most"
    )
