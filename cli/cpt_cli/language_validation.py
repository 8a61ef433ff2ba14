"""The validation of a language model on a text, or on its golden sample alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out
from cpt_cli.portability import WITHOUT_VNNI, saturation_line, show_portability
from cpt_cli.validation_summary import failure
from cpt_cli.workflow import find_run, is_run_of
from cpt_deploy.errors import UsageError, ValidationFailedError

if TYPE_CHECKING:
    from cpt_deploy.bundle.language import LanguageBundle
    from cpt_deploy.bundle.processors.tokenization import Ids, Tokenizer
    from cpt_deploy.quantization import QuantizedLanguageModel
    from cpt_deploy.training import TrainedLanguageModel
    from cpt_deploy.validation.language.gate import LanguageReference
    from cpt_deploy.validation.language.measuring import Step
    from cpt_deploy.validation.language.validate import LanguageReport


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
    allow_undecided: bool = False
    no_gate: bool = False


def measure_language_bundle(bundle: "LanguageBundle", data: str, options: ValidateOptions) -> "LanguageReport":
    """Measure a language model on the test text of a corpus and store the report in its bundle.

    Args:
        bundle: The bundle.
        data: Name or path of the corpus.
        options: What to compare and to judge.

    Raises:
        UsageError: If the bundle was not exported from the given run.
        CptError: If the corpus or the run cannot be read.
    """
    from cpt_deploy.bundle.language import update_language_validation
    from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP
    from cpt_deploy.validation.language.validate import validate_language

    default = None if options.no_gate else MAX_DROP
    report = validate_language(
        bundle,
        test_tokens(bundle.text.tokenizer, data, options.data_dir, options.limit),
        {"name": data if ":" in data else Path(data).name, "split": "test"},
        trained=_trained(bundle, data, options),
        max_rise=default if options.max_rise is None else options.max_rise,
        allow_undecided=options.allow_undecided,
        require_exact=options.provider == "cpu" if options.require_exact is None else options.require_exact,
        provider=options.provider,
    )
    update_language_validation(bundle, report.content, report.results)
    return report


def test_tokens(tokenizer: "Tokenizer", data: str, data_dir: Path | None, limit: int | None) -> "Ids":
    """Return the tokens of a corpus' test text.

    Args:
        tokenizer: The model's.
        data: Name or path of the corpus.
        data_dir: Folder that holds it.
        limit: How many tokens are to be predicted; all but the first if None.

    Raises:
        DataError: If the text cannot be read.
    """
    from cpt_deploy.data.text import load_corpus

    tokens = tokenizer.encode(load_corpus(data, data_dir).text("test"))
    return tokens if limit is None else tokens[: limit + 1]


def validate_language_bundle(bundle: "LanguageBundle", options: ValidateOptions) -> None:
    """Measure a language model on the test text of a corpus, or on its golden sample, and keep the evidence.

    Raises:
        ValidationFailedError: If perplexity rose too far or an integer differs.
        CptError: If the corpus or the run cannot be read.
    """
    if options.data is None:
        _check_golden(bundle, options.provider)
        return
    report = measure_language_bundle(bundle, options.data, options)
    _show_report(report)
    out.result({"bundle": bundle.path, **report.content})
    if not report.passed:
        raise failure(report.reasons, report.undecided)
    out.hint(f"cpt serve {formats.path(bundle.path)}")


def _trained(bundle: "LanguageBundle", data: str, options: ValidateOptions) -> "LanguageReference | None":
    """Return the trained model that a bundle comes from with the text as it reads it, if it is here."""
    run_dir = options.run
    if run_dir is not None and not is_run_of(run_dir, bundle):
        raise UsageError(
            f"Expected the run that {formats.path(bundle.path)} was exported from, but {formats.path(run_dir)} "
            "has other weights",
        )
    found = run_dir or find_run(bundle)
    if found is None:
        out.note("the run that the bundle comes from is not here: compared with the integer executor alone")
        return None
    from cpt_deploy.training import load_language_model
    from cpt_deploy.training.tasks.language import token_digest
    from cpt_deploy.validation.language.gate import LanguageReference

    run = load_language_model(found)
    text = test_tokens(run.tokenizer, data, options.data_dir, options.limit)
    same = token_digest(text) == run.report.data["test_sha256"]
    recorded = _measured_again(run, text) if same else None
    return LanguageReference(trained_step(run.model), text, run.tokenizer.to_json(), formats.path(found), recorded)


def _measured_again(run: "TrainedLanguageModel", text: "Ids") -> tuple[float, float] | None:
    """Return a run's perplexity of its test text as its report says it, and as the same evaluation gives it here."""
    import torch

    from cpt_deploy.data.text import evaluation_chunks
    from cpt_deploy.training.text_evaluation import evaluate_text

    settings = run.recipe.data.text
    chunks = evaluation_chunks(text, run.recipe.train.eval_batch_size, settings.sequence, settings.context)
    again = evaluate_text(run.model, chunks, device=torch.device("cpu"))
    recorded = run.report.test.perplexity
    assert again is not None
    return None if recorded is None or again.perplexity is None else (recorded, again.perplexity)


def trained_step(model: "QuantizedLanguageModel") -> "Step":
    """Return a trained model at its upper bound as a function of NumPy arrays."""
    import torch

    def step(tokens: Any, state: Any) -> Any:
        with torch.no_grad(), model.upper_bound():
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
    portable = show_portability(bundle)
    out.result({"passed": check.within, "bundle": bundle.path, "golden": check, **portable})
    if not check.within:
        raise ValidationFailedError(
            f"Expected the golden logits within {bundle.golden.tolerance:.3g}, but they differ by {check.worst:.3g}"
        )
    out.hint(f"cpt validate {formats.path(bundle.path)} --data {bundle.facts.get('dataset', 'NAME')}")


def _rise(report: "LanguageReport") -> str:
    """Return what is said of perplexity: the rise with its interval and what is allowed."""
    from cpt_deploy.validation.accuracy.noninferiority import NonInferiority
    from cpt_deploy.validation.language.gate import rise_interval

    content, found = report.content, report.content["non_inferiority"]
    if found is None or None in {found["loss"], found["low"], found["high"]}:
        return f"perplexity {content['perplexity_rise_percent']} %"
    limit = content["max_rise_percent"]
    allowed = "" if limit is None else f" of {limit:g} % allowed"
    return f"perplexity rose by {rise_interval(NonInferiority(**found))}{allowed}"


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
        f"{report.verdict if report.verdict == 'passed' else report.verdict.upper()}: {_rise(report)}, "
        f"{integers['mismatching']:,} of {integers['compared']:,} integer sums differ given the same codes; on their "
        f"own way {others:,} of {codes:,} codes differ, logits by {content['worst_logit']:.2g} at most"
    )
    here = content["saturation"]["applies_to_this_cpu"]
    out.line(f"{WITHOUT_VNNI}: {saturation_line(report.saturation, report.portability, saturates_here=here)}")
