"""`cpt validate`: the gate between training and serving."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli import formats
from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, ProviderOption, QuietFlag
from cpt_cli.output import out
from cpt_cli.portability import WITHOUT_VNNI, saturation_line, show_portability
from cpt_deploy.errors import MissingExtraError, UsageError, ValidationFailedError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.validation import ValidationReport
    from cpt_deploy.validation.report import FloatFacts

VALIDATION_PAGE = "validation.html"


def validate(  # noqa: PLR0913, PLR0917  the options are its parameters
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data set to measure on, by name, path or import path; without it only the golden sample."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run to compare with.", show_default="the one that the bundle lies in")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="The float model that a calibrated bundle was made from, to compare with.",
            show_default="the file that lies around the bundle",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure this many images.", show_default="all")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Most points of accuracy that may be lost from the trained model to onnxruntime.",
            show_default="0.1, but at least two images, where the run is found",
        ),
    ] = None,
    require_exact: Annotated[
        bool | None,
        typer.Option(
            "--require-exact/--no-require-exact",
            help="Whether each integer inside onnxruntime must be that of the integer executor.",
            show_default="where torch and onnx are installed, on the cpu",
        ),
    ] = None,
    provider: ProviderOption = "cpu",
    html: Annotated[
        Path | None, typer.Option(help="Write the page of the evidence here too (needs Matplotlib).")
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure a bundle before it is served: accuracy and integers of trained model, integer executor and onnxruntime.

    On another execution provider than cpu integers may differ: how many do is measured, and fails only on request.
    Where parts of a network compute in float, integers are computed from the codes that onnxruntime had before them.
    Of a language model perplexity is measured on the test text, and --max-drop is percent of it.

    The evidence becomes validation.json and a page, validation.html, in the bundle and a table in its model card. The
    exit code is 4 when accuracy dropped too far, an integer differs or model.onnx is not what was exported.
    """
    from cpt_cli.language_validation import ValidateOptions, validate_language_bundle
    from cpt_deploy.bundle.language import LanguageBundle, open_bundle

    opened = open_bundle(bundle)
    if isinstance(opened, LanguageBundle):
        if source is not None or html is not None:
            raise UsageError("Expected no --from and no --html for a language model, but got one")
        options = ValidateOptions(data, data_dir, run, limit, max_drop, require_exact, provider)
        validate_language_bundle(opened, options)
        return
    if data is None:
        only_with_data = {
            "--run": run, "--from": source, "--limit": limit, "--max-drop": max_drop, "--data-dir": data_dir,
            "--html": html,
        }  # fmt: skip
        for option, value in only_with_data.items():
            if value is not None:
                raise UsageError(f"Expected --data with {option}, but got none", hint="name the data set to measure on")
        exact = _rounds_as_the_executor(provider) if require_exact is None else require_exact
        _check_golden(opened, provider, require_exact=exact)
        return
    if run is not None and source is not None:
        raise UsageError("Expected either --run or --from, but got both", hint="a bundle has one model behind it")
    if html is not None:
        _check_page(html)
    _validate_on(
        opened,
        data,
        data_dir,
        run=run,
        source=source,
        limit=limit,
        max_drop=max_drop,
        require_exact=require_exact,
        provider=provider,
        html=html,
    )


def _check_golden(bundle: "Bundle", provider: str, *, require_exact: bool) -> None:
    from cpt_deploy.bundle import OnnxRuntimeModel
    from cpt_deploy.validation import compare_constants, constant_reasons

    # The constants first: where one was edited, onnxruntime may not even load the file.
    constants = compare_constants(bundle) if find_spec("onnx") is not None else None
    check = OnnxRuntimeModel(bundle.onnx_path, provider=provider).reproduce_golden(bundle.golden)
    reasons = constant_reasons(constants)
    if require_exact and not check.reproduced:
        reasons.append(f"{check.mismatches} of {check.values} {check.what} of the golden sample were not reproduced")
    passed = not reasons
    held = "" if constants is None or constants.differences else f", {constants.compared:,} constants are as exported"
    out.line(
        f"{'passed' if passed else 'FAILED'}: {check.values - check.mismatches} of {check.values} {check.what} of "
        f"the golden sample are reproduced by onnxruntime, checksums hold{held}"
    )
    portable = show_portability(bundle)
    out.result({"passed": passed, "bundle": bundle.path, "golden": check, "constants": constants, **portable})
    if not passed:
        raise ValidationFailedError(
            "; ".join(reasons),
            hint=f"to find where: cpt validate {formats.path(bundle.path)} --data NAME",
        )
    out.hint(f"cpt validate {formats.path(bundle.path)} --data {bundle.facts.get('dataset', 'NAME')}")


def _validate_on(  # noqa: PLR0913  what the command was given
    bundle: "Bundle",
    data: str,
    data_dir: Path | None,
    *,
    run: Path | None,
    source: Path | None,
    limit: int | None,
    max_drop: float | None,
    require_exact: bool | None,
    provider: str,
    html: Path | None,
) -> None:
    from cpt_cli.workflow import measure_bundle

    report = measure_bundle(
        bundle,
        data,
        data_dir,
        run_dir=run,
        source=source,
        limit=limit,
        max_drop=max_drop,
        require_exact=_can_compare_integers(provider) if require_exact is None else require_exact,
        provider=provider,
    )
    show_report(report)
    if html is not None:
        html.write_bytes((bundle.path / VALIDATION_PAGE).read_bytes())
        out.note(f"evidence: {formats.path(html)}")
    elif find_spec("matplotlib") is not None:
        out.note(f"evidence: {formats.path(bundle.path / VALIDATION_PAGE)}")
    out.result({**report.to_dict(), "bundle": bundle.path})
    if not report.passed:
        raise ValidationFailedError("; ".join(report.reasons))
    out.hint(f"cpt serve {formats.path(bundle.path)}")


def _check_page(html: Path) -> None:
    """Raise before anything is measured if the page cannot be drawn or written."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "Expected Matplotlib for --html, but it is not installed", hint="pip install 'cpt-deploy[train]'"
        )
    if html.is_dir() or not html.parent.is_dir():
        found = "a directory" if html.is_dir() else f"no directory {formats.path(html.parent)}"
        raise UsageError(f"Expected --html to name a file that can be written, but there is {found}")


def _can_compare_integers(provider: str) -> bool:
    return _rounds_as_the_executor(provider) and find_spec("torch") is not None and find_spec("onnx") is not None


def _rounds_as_the_executor(provider: str) -> bool:
    from cpt_deploy.bundle.providers import CPU, provider_name

    return provider_name(provider) == CPU


def show_report(report: "ValidationReport") -> None:
    """Print what was measured, other labels and logits against onnxruntime, and what was not measured."""
    from cpt_deploy.bundle import FORMATS

    for note in report.notes:
        out.note(f"note: {note}")
    if out.quiet:
        out.line("passed" if report.passed else "failed")
        return
    out.table(
        ("runtime", "accuracy", "95 % interval", "other labels", "worst logit difference"),
        [(report.title(entry.name), *_accuracy_cells(entry.name, report)) for entry in report.runtimes],
        title=f"{report.bundle} on {report.dataset.samples} images of {report.dataset.name} ({report.dataset.split})",
    )
    golden, differing = report.golden, report.first_difference
    integers = "not compared"
    if report.tensors is not None:
        integers = (
            f"{report.compared_integers - report.mismatching_integers:,} of {report.compared_integers:,} in "
            f"{len(report.tensors)} tensors are the same"
        )
    if report.tensors is not None and report.float_parts is not None:
        integers += ", each from the codes that onnxruntime had at its entry"
    facts = {
        "integers": integers + (f", first difference in {differing.name}" if differing else ""),
        "golden sample": f"{golden.values - golden.mismatches} of {golden.values} {golden.what} reproduced",
    }
    if report.float_parts is not None:
        facts |= _float_lines(report.float_parts)
    facts |= {
        f"logits of {FORMATS[pair.first].file}": f"{pair.other_logits or 'none'} differ from onnxruntime's"
        for pair in report.comparisons
        if pair.first in FORMATS
    }
    if not _rounds_as_the_executor(report.provider):
        facts["onnxruntime on"] = report.provider
    if report.constants is not None:
        changed = report.constants.differences
        compared = f"{report.constants.compared:,} codes, scales, zero points and biases"
        facts["model.onnx"] = f"differs, first in {changed[0].tensor}" if changed else f"{compared} are as exported"
    if report.graph is not None:
        floats = ", ".join(f"{count} {name}" for name, count in report.graph.float_operators.items())
        facts["operators left in float"] = floats or "none"
    if report.drop is not None:
        facts["accuracy lost"] = f"{report.drop:.2f} points from {report.reference} to onnxruntime"
    largest = max(report.accumulators, key=lambda entry: entry.worst_sum, default=None)
    if largest is not None:
        facts["largest possible sum"] = f"{formats.share(largest.share)} of int32, in {largest.name}"
    facts[WITHOUT_VNNI] = saturation_line(report.saturation, report.portability, saturates_here=report.cpu.saturates)
    out.fields("passed" if report.passed else "FAILED", facts)


def _float_lines(floats: "FloatFacts") -> dict[str, str]:
    """Return what is said of the parts of a network that compute in float."""
    lines = {
        "on integers": f"{formats.share(floats.integer_share)} of the multiply-accumulates",
        "in float": ", ".join(f"{count} {name}" for name, count in floats.operators.items()) or "movements only",
    }
    if floats.other_codes is not None:
        differing, codes = floats.other_codes
        lines["executor on its own way"] = f"{differing:,} of {codes:,} codes differ, which is not judged"
    return lines


def _accuracy_cells(name: str, report: "ValidationReport") -> tuple[str, ...]:
    accuracy = report.runtime(name).accuracy
    interval = f"{formats.share(accuracy.low)} to {formats.share(accuracy.high)}"
    pair = next((pair for pair in report.comparisons if (pair.first, pair.second) == (name, "onnxruntime")), None)
    worst = pair.worst_logit_difference if pair else None
    return (
        formats.share(accuracy.value),
        interval,
        "" if pair is None else str(pair.other_labels),
        "" if worst is None else f"{worst:.3g}",
    )


COMMAND = Command(
    name="validate",
    function=validate,
    panel=SHIP_PANEL,
    examples=(
        "cpt validate runs/digits/bundle-8bit --data digits",
        "cpt validate my-bundle --data fashion-mnist --run runs/fashion --max-drop 0.1",
        "cpt validate my-bundle --data digits --html evidence.html  # the page to show, beside the one in the bundle",
        "cpt validate my-bundle --data digits --provider cuda  # with onnxruntime-gpu",
        "cpt validate my-bundle  # checksums, constants and golden sample only: needs neither data nor torch",
    ),
)
