"""`cpt validate`: measure a bundle and decide whether it may be served."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli import formats
from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, ProviderOption, QuietFlag
from cpt_cli.output import out
from cpt_cli.portability import show_portability
from cpt_cli.validation_summary import failure, rounds_as_the_executor, show_report
from cpt_deploy.errors import MissingExtraError, UsageError, ValidationFailedError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle

VALIDATION_PAGE = "validation.html"


def validate(  # noqa: PLR0913, PLR0917  the options are its parameters
    bundle: Annotated[Path, typer.Argument(help="Bundle that cpt export wrote.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set to measure on, by name, path or import path; without it, only the golden sample is checked."
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run to compare with.", show_default="the run that contains the bundle")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="The float model that a calibrated bundle was exported from, to compare with.",
            show_default="the file next to the bundle",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure this many images.", show_default="all")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Maximum loss of accuracy, in points, from the trained model to onnxruntime.",
            show_default="0.5, if the run is found",
        ),
    ] = None,
    allow_undecided: Annotated[
        bool,
        typer.Option("--allow-undecided", help="Pass if there are too few samples to decide whether more is lost."),
    ] = False,
    require_exact: Annotated[
        bool | None,
        typer.Option(
            "--require-exact/--no-require-exact",
            help="Whether each integer in onnxruntime must equal the integer executor's.",
            show_default="required with torch and onnx installed, on the cpu",
        ),
    ] = None,
    provider: ProviderOption = "cpu",
    html: Annotated[
        Path | None, typer.Option(help="Also write the page of the evidence to this file (needs Matplotlib).")
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Measure a bundle before it is served: accuracy and integers of trained model, integer executor and onnxruntime.

    On execution providers other than cpu, integers may differ: the number is measured, and fails only on request. If
    parts of a network are computed in float, the integers after them are replayed from onnxruntime's values at the
    boundary. For a language model, perplexity is measured on the test text, and --max-drop is a percentage of it.

    The loss of accuracy is judged by a non-inferiority test on paired answers: it passes, fails, or is undecided, with
    an estimate of how many more samples are needed.

    The evidence is written to validation.json and a page, validation.html, in the bundle, and to a table in its model
    card. The exit code is 4 unless the bundle passed: it fails if accuracy dropped too far or the test is undecided, an
    integer differs, or a file differs from the export.
    """
    from cpt_cli.language_validation import ValidateOptions, validate_language_bundle
    from cpt_deploy.bundle.language import LanguageBundle, open_bundle

    opened = open_bundle(bundle)
    if isinstance(opened, LanguageBundle):
        if source is not None or html is not None:
            raise UsageError("Expected no --from and no --html for a language model, but got one")
        options = ValidateOptions(
            data, data_dir, run, limit, max_drop, require_exact, provider, allow_undecided=allow_undecided
        )
        validate_language_bundle(opened, options)
        return
    if data is None:
        only_with_data = {
            "--run": run, "--from": source, "--limit": limit, "--max-drop": max_drop, "--data-dir": data_dir,
            "--html": html, "--allow-undecided": allow_undecided or None,
        }  # fmt: skip
        for option, value in only_with_data.items():
            if value is not None:
                raise UsageError(f"Expected --data with {option}, but got none", hint="name the data set to measure on")
        exact = rounds_as_the_executor(provider) if require_exact is None else require_exact
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
        allow_undecided=allow_undecided,
        require_exact=require_exact,
        provider=provider,
        html=html,
    )


def _check_golden(bundle: "Bundle", provider: str, *, require_exact: bool) -> None:
    from cpt_deploy.bundle import OnnxRuntimeModel
    from cpt_deploy.validation import compare_constants, constant_reasons

    # Compare the constants first: onnxruntime may not even load a file with an edited one.
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
            hint=f"to locate it: cpt validate {formats.path(bundle.path)} --data NAME",
        )
    out.hint(f"cpt validate {formats.path(bundle.path)} --data {bundle.facts.get('dataset', 'NAME')}")


def _validate_on(  # noqa: PLR0913  the options of the command
    bundle: "Bundle",
    data: str,
    data_dir: Path | None,
    *,
    run: Path | None,
    source: Path | None,
    limit: int | None,
    max_drop: float | None,
    allow_undecided: bool,
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
        allow_undecided=allow_undecided,
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
        raise failure(report.reasons, report.undecided)
    out.hint(f"cpt serve {formats.path(bundle.path)}")


def _check_page(html: Path) -> None:
    """Check, before anything is measured, that the page can be drawn and written."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "Expected Matplotlib for --html, but it is not installed", hint="pip install 'cpt-deploy[train]'"
        )
    if html.is_dir() or not html.parent.is_dir():
        found = "a directory" if html.is_dir() else f"no directory {formats.path(html.parent)}"
        raise UsageError(f"Expected --html to name a file that can be written, but there is {found}")


def _can_compare_integers(provider: str) -> bool:
    return rounds_as_the_executor(provider) and find_spec("torch") is not None and find_spec("onnx") is not None


COMMAND = Command(
    name="validate",
    function=validate,
    panel=SHIP_PANEL,
    examples=(
        "cpt validate runs/digits/bundle-8bit --data digits",
        "cpt validate my-bundle --data fashion-mnist --run runs/fashion --max-drop 1  # at most 1 point lost",
        "cpt validate my-bundle --data digits --html evidence.html  # a copy of the page in the bundle",
        "cpt validate my-bundle --data digits --provider cuda  # with onnxruntime-gpu",
        "cpt validate my-bundle  # checksums, constants and golden sample only: needs neither data nor torch",
    ),
)
