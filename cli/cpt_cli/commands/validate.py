"""`cpt validate`: measure a bundle and decide whether it may be served."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command, ProviderOption
from cpt_cli.output import out
from cpt_cli.shown.validation import require_passed, show_evidence
from cpt_deploy import readable
from cpt_deploy.errors import MissingDataError, UsageError, ValidationFailedError


def validate(  # noqa: PLR0913, PLR0917  the options are its parameters
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|RUN|FILE",
            help="Bundle that cpt export wrote, its run, or a quantized ONNX file of any other tool.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set to measure on, by name, path or import path; a file inputs.npz for models of tensors. "
            "Without it an ONNX file runs on random inputs.",
            show_default="that of the run or bundle",
        ),
    ] = None,
    no_data: Annotated[
        bool,
        typer.Option("--no-data", help="Check only checksums, constants and the golden sample, which need no data."),
    ] = False,
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
    float_source: Annotated[
        Path | None,
        typer.Option("--float", help="The float ONNX file that a file of another tool was made from, to compare with."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure this many samples.", show_default="all")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Maximum loss from the trained model to onnxruntime: points of accuracy, percent of perplexity.",
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
) -> None:
    """Measure a bundle before it is served: metric and integers of trained model, executor and onnxruntime.

    On execution providers other than cpu, integers may differ: the number is measured, and fails only on request. If
    parts of a network are computed in float, the integers after them are replayed from onnxruntime's values at the
    boundary. The metric is that of the task, such as accuracy, or perplexity, of which --max-drop is a percentage.

    The loss is judged by a non-inferiority test on paired samples: it passes, fails, or is undecided, with
    an estimate of how many more samples are needed.

    The evidence is written to validation.json and a page, validation.html, in the bundle, and to a table in its model
    card. The exit code is 4 unless the bundle passed: it fails if too much was lost or the test is undecided, an
    integer differs, or a file differs from the export.

    An ONNX file of another tool is compared operator by operator with exact arithmetic, and with onnxruntime's
    optimizations off, as other runtimes compute. Its evidence is written beside it.
    """
    from cpt_deploy.workflows import ValidationOptions, bundle_at, validate_bundle

    if bundle.is_file():
        only_bundles = {
            "--run": run, "--from": source, "--max-drop": max_drop, "--data-dir": data_dir,
            "--allow-undecided": allow_undecided or None, "--require-exact": require_exact,
            "--provider": None if provider == "cpu" else provider,
        }  # fmt: skip
        for option, value in only_bundles.items():
            if value is not None:
                raise UsageError(f"Expected no {option} for an ONNX file, but got it", hint="it is for bundles")
        _validate_file(bundle, data, float_source, limit, html)
        return
    if float_source is not None:
        raise UsageError("Expected --float with an ONNX file, but got a bundle", hint="--from names its float model")

    bundle = bundle_at(bundle)
    if no_data and data is not None:
        raise UsageError("Expected either --data or --no-data, but got both")
    own = None if no_data or data is not None else _own_data(bundle, run)
    if own is not None:
        data, data_dir = own[0], data_dir or own[1]
    if data is None:
        only_with_data = {
            "--run": run, "--from": source, "--limit": limit, "--max-drop": max_drop, "--data-dir": data_dir,
            "--html": html, "--allow-undecided": allow_undecided or None,
        }  # fmt: skip
        for option, value in only_with_data.items():
            if value is not None:
                raise UsageError(f"Expected --data with {option}, but got none", hint="name the data set to measure on")
        _check_alone(bundle, provider, require_exact=require_exact, no_data=no_data)
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
    try:
        evidence = validate_bundle(bundle, options, reporter=out)
    except MissingDataError as error:
        if own is None:
            raise
        out.warning(f"the metric is not measured, since its data are not here; --data names others. {error.message}")
        _check_alone(bundle, provider, require_exact=require_exact, no_data=no_data)
        return
    show_evidence(evidence)
    if evidence.page is not None:
        out.note(f"evidence: {readable.path(evidence.page)}")
    out.result({**evidence.content, "bundle": bundle})
    require_passed(evidence)
    out.hint(f"cpt serve {readable.argument(bundle)}")


def _validate_file(path: Path, data: str | None, source: Path | None, limit: int | None, page: Path | None) -> None:
    """Validate an ONNX file of another tool, and write the evidence beside it."""
    from cpt_cli.shown.onnx_file import show_file_report
    from cpt_deploy.workflows import validate_onnx_file, write_file_report

    report = validate_onnx_file(path, None if data is None else Path(data), source, limit=limit, reporter=out)
    show_file_report(report)
    page = write_file_report(report, path, page)
    out.note(f"evidence: {readable.path(page)}")
    out.result({**report.to_dict(), "file": path, "page": page})
    if not report.passed:
        raise ValidationFailedError("; ".join(report.reasons))
    out.hint(f"cpt serve {readable.argument(path)}")


def _own_data(bundle: Path, run: Path | None) -> tuple[str, Path | None] | None:
    """Return the data of a bundle's run or of the bundle; None if it has none, or without PyTorch, which reads them."""
    from cpt_deploy.bundle import Bundle
    from cpt_deploy.workflows import own_data

    if find_spec("torch") is None:
        out.note("the metric is not measured, since PyTorch is not installed")
        return None
    return own_data(Bundle.open(bundle, verify=False), run)


def _check_alone(bundle: Path, provider: str, *, require_exact: bool | None, no_data: bool) -> None:
    """Check a bundle without data."""
    from cpt_deploy.workflows import check_bundle

    check = check_bundle(bundle, provider=provider, require_exact=require_exact)
    out.line(f"{'passed' if check.passed else 'FAILED'}: {check.statement}")
    if check.portability is not None:
        out.line(check.portability)
    out.result({"passed": check.passed, "bundle": bundle, **check.content})
    if not check.passed:
        raise ValidationFailedError(
            "; ".join(check.reasons), hint=f"to find where: cpt validate {readable.argument(bundle)} --data NAME"
        )
    out.hint(f"cpt validate {readable.argument(bundle)}" + ("" if no_data else " --data NAME"))


COMMAND = Command(
    validate,
    "cpt validate runs/digits/bundle-8bit  # on the test data of its run",
    "cpt validate my-bundle --data fashion-mnist --run runs/fashion --max-drop 1  # at most 1 point lost",
    "cpt validate my-bundle --data digits --provider cuda  # with onnxruntime-gpu",
    "cpt validate quantized.onnx --data inputs.npz --float model.onnx  # of any tool; arrays by input name",
    "cpt validate my-bundle --no-data  # checksums, constants and golden sample only: needs neither data nor torch",
)
