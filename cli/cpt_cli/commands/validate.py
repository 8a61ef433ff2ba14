"""`cpt validate`: the gate between training and serving."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import SHIP_PANEL, Command, DebugFlag, JsonFlag, ProviderOption, QuietFlag
from cpt_cli.output import out
from cpt_cli.shown.validation import require_passed, show_evidence
from cpt_deploy import readable
from cpt_deploy.errors import UsageError, ValidationFailedError


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
            show_default="0.5, where the run is found",
        ),
    ] = None,
    allow_undecided: Annotated[
        bool,
        typer.Option("--allow-undecided", help="Pass where there are too few samples to tell whether more is lost."),
    ] = False,
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

    Whether too much accuracy is lost is a test of non-inferiority on paired answers: it passes, fails, or is undecided
    and says about how many more samples it takes.

    The evidence becomes validation.json and a page, validation.html, in the bundle and a table in its model card. The
    exit code is 4 unless the bundle passed: accuracy dropped too far or that cannot be told, an integer differs, or a
    file is not what was exported.
    """
    from cpt_deploy.workflows import ValidationOptions, validate_bundle

    if data is None:
        only_with_data = {
            "--run": run, "--from": source, "--limit": limit, "--max-drop": max_drop, "--data-dir": data_dir,
            "--html": html, "--allow-undecided": allow_undecided or None,
        }  # fmt: skip
        for option, value in only_with_data.items():
            if value is not None:
                raise UsageError(f"Expected --data with {option}, but got none", hint="name the data set to measure on")
        _check_alone(bundle, provider, require_exact=require_exact)
        return
    options = ValidationOptions(
        data,
        data_dir=data_dir,
        run=run,
        source=source,
        limit=limit,
        max_drop=max_drop,
        allow_undecided=allow_undecided,
        require_exact=require_exact,
        provider=provider,
        page=html,
    )
    evidence = validate_bundle(bundle, options, reporter=out)
    show_evidence(evidence)
    if evidence.page is not None:
        out.note(f"evidence: {readable.path(evidence.page)}")
    out.result({**evidence.content, "bundle": bundle})
    require_passed(evidence)
    out.hint(f"cpt serve {readable.path(bundle)}")


def _check_alone(bundle: Path, provider: str, *, require_exact: bool | None) -> None:
    """Check a bundle without data."""
    from cpt_deploy.bundle.language import open_bundle
    from cpt_deploy.workflows import check_bundle

    check = check_bundle(bundle, provider=provider, require_exact=require_exact)
    out.line(f"{'passed' if check.passed else 'FAILED'}: {check.statement}")
    if check.portability is not None:
        out.line(check.portability)
    out.result({"passed": check.passed, "bundle": bundle, **check.content})
    if not check.passed:
        raise ValidationFailedError(
            "; ".join(check.reasons), hint=f"to find where: cpt validate {readable.path(bundle)} --data NAME"
        )
    dataset = open_bundle(bundle, verify=False).facts.get("dataset", "NAME")
    out.hint(f"cpt validate {readable.path(bundle)} --data {dataset}")


COMMAND = Command(
    name="validate",
    function=validate,
    panel=SHIP_PANEL,
    examples=(
        "cpt validate runs/digits/bundle-8bit --data digits",
        "cpt validate my-bundle --data fashion-mnist --run runs/fashion --max-drop 1  # points that may be lost",
        "cpt validate my-bundle --data digits --html evidence.html  # the page to show, beside the one in the bundle",
        "cpt validate my-bundle --data digits --provider cuda  # with onnxruntime-gpu",
        "cpt validate my-bundle  # checksums, constants and golden sample only: needs neither data nor torch",
    ),
)
