"""From the run of a language model to its bundle."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_cli import formats
from cpt_cli.export_summary import files_bytes, show_mixed_precision, weights_in_words
from cpt_cli.output import out
from cpt_cli.portability import note_reduced
from cpt_cli.widths import MOST_BITS, Sensitivity, Widths, budgeted_widths, given_widths, sensitivity_bar
from cpt_cli.workflow import TRAINED_DIGEST, ExportOptions, dataset_name, shippable
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.bundle.language import LanguageBundle
    from cpt_deploy.data.text import Corpus
    from cpt_deploy.training import TrainedLanguageModel

TOKENIZER = "tokenizer.json"
SETTLE_CHUNKS = 64
"""Chunks of training text on which ranges are estimated anew at other bits."""
SENSITIVITY_TOKENS = 8192
"""Tokens of validation text that each layer's sensitivity is measured on."""


def is_language_run(run_dir: Path) -> bool:
    """Return whether a run is one of a language model: it has a vocabulary."""
    return (run_dir / TOKENIZER).is_file() and (run_dir / "recipe.yaml").is_file()


def export_language(run_dir: Path, options: ExportOptions, destination: Path | None) -> None:
    """Freeze the language model of a run, write its bundle, and show it.

    Raises:
        UsageError: If an option is not for language models, the run never trained at these bits, or the budget cannot
            be met.
        ConversionError: If the model has no integer form.
        CheckpointError: If the run is unfinished or damaged.
        BundleError: If the bundle cannot be written.
    """
    bundle = export_language_run(run_dir, options, destination)
    from cpt_deploy.bundle.language import LanguageModel

    check = LanguageModel(bundle.onnx_path, bundle.manifest).reproduce_golden(bundle.golden)
    if "mixed_precision" in bundle.facts:
        show_mixed_precision(bundle.facts["mixed_precision"])
    out.fields(
        f"Exported {bundle.name}{weights_in_words(bundle.facts)}",
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
    out.result(
        {
            "bundle": bundle.path,
            "name": bundle.name,
            "facts": bundle.facts,
            "sha256": bundle.sha256,
            "files_bytes": files_bytes(bundle),
            "golden": check,
        }
    )
    out.hint(f"cpt validate {formats.path(bundle.path)} --data {bundle.facts['dataset']}")


def export_language_run(
    run_dir: Path, options: ExportOptions, destination: Path | None = None, data_dir: Path | None = None
) -> "LanguageBundle":
    """Freeze the language model of a run and write its bundle; see `export_language`."""
    from cpt_deploy.data.text import load_corpus
    from cpt_deploy.export.language.bundle_export import LanguageIdentity, export_language_bundle
    from cpt_deploy.quantization import make_native
    from cpt_deploy.training import load_language_model

    _check_options(options)
    run = load_language_model(run_dir)
    root = data_dir or run.recipe.data.root
    corpus = load_corpus(run.recipe.data.name, None if root is None else Path(root))
    if options.native:
        make_native(run.model)
    if options.budget is None:
        widths = given_widths(run, options.bits, options.activation_bits, force=options.force)
    else:
        measure = partial(_measure_on_text, run, corpus)
        widths = budgeted_widths(run, options.budget, options.activation_bits, measure, force=options.force)
    note_reduced(run.model, widths.weights)
    _settle(run, widths, corpus, anew=options.native)
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
        destination or run_dir / f"{widths.name}{options.suffix}",
        identity,
        run.tokenizer.encode(corpus.text("test")),
        weight_bits=widths.weights,
        activation_bits=widths.activations,
        opset=options.opset,
    )


def _check_options(options: ExportOptions) -> None:
    """Refuse what language models have no form for.

    Raises:
        UsageError: If it is asked for.
    """
    if options.symmetric:
        raise UsageError(
            "Expected affine activations for a language model, but got --activations symmetric",
            hint="its products are MatMulInteger of uint8 codes, which engines that want int8 do not take",
        )
    further = sorted(set(options.formats) - {"onnx", "safetensors"})
    if further:
        raise UsageError(
            f"Expected a language model as onnx and safetensors, but got --format {','.join(further)}",
            hint="its integer executor is no PyTorch program; model.onnx runs in onnxruntime",
        )


def _measure_on_text(
    run: "TrainedLanguageModel", corpus: "Corpus", candidates: Sequence[int], activations: int
) -> Sensitivity:
    """Settle a run's model at its upper bound, and measure what fewer bits do to the loss on validation text.

    Args:
        run: The run.
        corpus: Its text.
        candidates: Bits to try in each layer.
        activations: Bits of the cycling activations.
    """
    from cpt_deploy.data.text import evaluation_chunks
    from cpt_deploy.quantization import measure_loss_sensitivity

    _settle(run, Widths(min(run.recipe.precision.upper, MOST_BITS), activations, ""), corpus)
    ids = run.tokenizer.encode(corpus.text("valid"))[: SENSITIVITY_TOKENS + 1]
    text = run.recipe.data.text
    chunks = list(evaluation_chunks(ids, run.recipe.train.batch_size, text.sequence, text.context))
    with sensitivity_bar(run) as bar:
        layers = measure_loss_sensitivity(
            run.model, chunks, candidates, activation_bits=activations, progress=bar.advance
        )
    return Sensitivity(layers, "loss_rise", {"sensitivity_tokens": len(ids) - 1})


def _settle(run: "TrainedLanguageModel", widths: Widths, corpus: "Corpus", *, anew: bool = False) -> None:
    """Estimate the activation ranges anew on training text, unless they are those of training's upper bound.

    Args:
        run: The run, whose model is settled.
        widths: The bits.
        corpus: The text.
        anew: Whether to settle in any case, since the codes have changed otherwise.
    """
    import torch

    from cpt_deploy.data.text import training_chunk, training_rows
    from cpt_deploy.quantization import observing

    upper = run.recipe.precision.upper
    if not anew and widths.are(upper):
        return
    rows = training_rows(run.tokenizer.encode(corpus.text("train")), run.recipe.train.batch_size)
    model, state = run.model, None
    out.note(f"estimating activation ranges with {widths.describe(upper)} on {SETTLE_CHUNKS} chunks of training text")
    with torch.no_grad(), model.upper_bound(widths.weights, widths.activations), observing(model):
        for number in range(SETTLE_CHUNKS):
            chunk = training_chunk(rows, run.recipe.data.text.sequence, number)
            _, state = model(chunk.tokens, None if chunk.first else state)
            state = state if model.carries_state else None
