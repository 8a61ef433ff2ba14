"""Validate a language model: on a text, against its run, or without data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle, TextProcessor, update_validation
from cpt_deploy.errors import UsageError
from cpt_deploy.tasks.evidence import (
    WITHOUT_VNNI,
    Evidence,
    Origin,
    Table,
    ValidationOptions,
    ValidationSummary,
    saturation_in_words,
)
from cpt_deploy.tasks.exporting import dataset_name
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    from cpt_deploy.bundle.processors.tokenization import Ids, Tokenizer
    from cpt_deploy.quantization import QuantizedLanguageModel
    from cpt_deploy.training import TrainedRun
    from cpt_deploy.validation.language.gate import LanguageReference
    from cpt_deploy.validation.language.measuring import Step
    from cpt_deploy.validation.language.validate import LanguageReport


def validate_bundle(
    bundle: Bundle, options: ValidationOptions, origin: Origin, reporter: Reporter, *, require_exact: bool
) -> Evidence:
    """Measure a bundle on the test text of a corpus and store the evidence in it, see `Task`."""
    from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP
    from cpt_deploy.validation.language.validate import validate_language

    if options.source is not None or options.page is not None:
        raise UsageError("Expected no --from and no --html for a language model, but got one")
    trained = None
    if origin.run is None:
        reporter.note("the run that the bundle comes from is not here: compared with the integer executor alone")
    else:
        trained = trained_reference(origin.run, options)
    default = None if options.no_gate else MAX_DROP
    report = validate_language(
        bundle,
        test_tokens(bundle.expect_processor(TextProcessor).tokenizer, options.data, options.data_dir, options.limit),
        {"name": dataset_name(options.data), "split": "test"},
        trained=trained,
        max_rise=default if options.max_drop is None else options.max_drop,
        allow_undecided=options.allow_undecided,
        require_exact=require_exact,
        provider=options.provider,
    )
    update_validation(bundle, report.content, report.results)
    return Evidence(
        passed=report.passed,
        verdict=report.verdict,
        reasons=report.reasons,
        undecided=report.undecided,
        content=report.content,
        summary=summarize(report),
        report=report,
    )


def trained_reference(run_dir: Path, options: ValidationOptions) -> "LanguageReference":
    """Return a run's model at max_bits, with the text as tokenized by its own tokenizer.

    Raises:
        CptError: If the run or the text cannot be read.
    """
    from cpt_deploy.data.text import token_digest
    from cpt_deploy.tasks.text_generation.export import language_model
    from cpt_deploy.training import load_run
    from cpt_deploy.validation.language.gate import LanguageReference

    run = load_run(run_dir)
    tokenizer = run.expect_processor(TextProcessor).tokenizer
    text = test_tokens(tokenizer, options.data, options.data_dir, options.limit)
    same = token_digest(text) == run.report.data["test_sha256"]
    recorded = _measured_again(run, text) if same else None
    return LanguageReference(
        trained_step(language_model(run)), text, tokenizer.to_json(), readable.path(run_dir), recorded
    )


def test_tokens(tokenizer: "Tokenizer", data: str, data_dir: Path | None, limit: int | None) -> "Ids":
    """Return the tokens of a corpus' test text.

    Args:
        tokenizer: The model's tokenizer.
        data: Name or path of the corpus.
        data_dir: Folder of the corpus.
        limit: Number of tokens to predict; None is all except the first.

    Raises:
        DataError: If the text cannot be read.
    """
    from cpt_deploy.data.text import load_corpus

    tokens = tokenizer.encode(load_corpus(data, data_dir).text("test"))
    return tokens if limit is None else tokens[: limit + 1]


def _measured_again(run: "TrainedRun", text: "Ids") -> tuple[float, float] | None:
    """Return a run's perplexity on its test text: from its report, and from the same evaluation on this machine."""
    import torch

    from cpt_deploy.data.text import evaluation_chunks
    from cpt_deploy.tasks.text_generation.export import language_model
    from cpt_deploy.training.text_evaluation import evaluate_text

    settings = run.recipe.data.text
    chunks = evaluation_chunks(text, run.recipe.train.eval_batch_size, settings.sequence, settings.context)
    again = evaluate_text(language_model(run), chunks, device=torch.device("cpu"))
    assert again is not None
    return run.report.figure, again.metrics["perplexity"]


def trained_step(model: "QuantizedLanguageModel") -> "Step":
    """Return a trained model at max_bits as a function of NumPy arrays."""
    import torch

    def step(tokens: Any, state: Any) -> Any:
        with torch.no_grad(), model.at_max_bits():
            scores, after = model(torch.from_numpy(tokens), state)
        return scores.numpy(), after

    return step


def summarize(report: "LanguageReport") -> ValidationSummary:
    """Return perplexity in each runtime, the verdict on its increase, and the integers that differ."""
    content = report.content
    table = Table(
        ("model", "perplexity", "loss", "most probable token"),
        tuple(
            (entry["name"], f"{entry['perplexity']:.3f}", f"{entry['loss']:.5f}", readable.share(entry["top1"]))
            for entry in content["runtimes"]
        ),
        f"{content['dataset']['samples']:,} tokens of {content['dataset']['name']}",
    )
    integers = content["integers"]
    codes = sum(product["codes"] for product in integers["products"])
    others = sum(product["other_codes"] for product in integers["products"])
    statement = (
        f"{_rise(report)}, {integers['mismatching']:,} of {integers['compared']:,} integer sums differ given the "
        f"same inputs; free-running, {others:,} of {codes:,} inputs differ, "
        f"and logits by {content['worst_logit']:.2g} at most"
    )
    here = content["saturation"]["applies_to_this_cpu"]
    saturation = saturation_in_words(report.saturation, report.portability, saturates_here=here)
    return ValidationSummary(table, statement=statement, lines=(f"{WITHOUT_VNNI}: {saturation}",))


def _rise(report: "LanguageReport") -> str:
    """Describe the increase of perplexity, with its interval and the allowed maximum."""
    from cpt_deploy.validation.accuracy.noninferiority import NonInferiority
    from cpt_deploy.validation.language.gate import rise_interval

    content, found = report.content, report.content["non_inferiority"]
    if found is None or None in {found["loss"], found["low"], found["high"]}:
        return f"perplexity {content['perplexity_rise_percent']} %"
    limit = content["max_rise_percent"]
    allowed = "" if limit is None else f" of {limit:g} % allowed"
    return f"perplexity rose by {rise_interval(NonInferiority(**found))}{allowed}"
