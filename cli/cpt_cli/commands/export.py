"""`cpt export`: freeze a trained model to integers and write the bundle that ships."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import TRAIN_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_cli.shown.export_summary import files_bytes, show_export
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

IMPORT_PANEL = "Models trained elsewhere"


class Activations(StrEnum):
    """How activations become integers."""

    AFFINE = "affine"
    SYMMETRIC = "symmetric"


def _list_formats(value: bool) -> None:
    if not value:
        return
    from cpt_deploy.bundle import FORMATS

    out.table(
        ("format", "file", "read by", "holds", "exported"),
        [
            (name, known.file, known.needs, known.holds, "always" if known.always else f"with --format {name}")
            for name, known in FORMATS.items()
        ],
    )
    out.result({"formats": {name: asdict(known) for name, known in FORMATS.items()}})
    raise typer.Exit


def export(  # noqa: PLR0913, PLR0917  the options are its parameters
    run: Annotated[
        Path | None,
        typer.Argument(help="Directory that cpt train wrote; none with --from.", metavar="RUN", show_default=False),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(min=2, max=8, help="Bits of the cycling layers' weights.", show_default="the run's upper bound"),
    ] = None,
    act_bits: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, help="Bits of the activations that cycled in training.", show_default="the run's upper bound"
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Instead of --bits: most size of the weights as a fraction of that at 8 bits; each layer gets bits by "
            "its measured sensitivity.",
        ),
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Directory of the bundle.",
            show_default="RUN/bundle-<BITS>bit or the like; with --from <FILE>-bundle-<BITS>bit beside the file",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset, 13 to 25, of language models 19 to 25. Weights of 3 and 4 bits are packed two to a byte "
            "from 21 on, of 2 bits four to a byte from 25 on; else a weight takes a byte.",
            show_default="17, of language models 19, or the least that packs them",
        ),
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Further forms of the model, joined by commas or repeated; --list-formats.",
            metavar="NAMES",
        ),
    ] = None,
    list_formats: Annotated[
        bool,
        typer.Option("--list-formats", help="List the formats and exit.", callback=_list_formats, is_eager=True),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Export at bits that the run never trained at.")] = False,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Keep the whole range of 8-bit weights: for processors with VNNI, since others of x86 then need "
            "slower kernels.",
        ),
    ] = False,
    activations: Annotated[
        Activations,
        typer.Option(
            help="affine: uint8, fastest in onnxruntime. symmetric: int8 with zero point 0, for TensorRT and its like."
        ),
    ] = Activations.AFFINE,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Instead of a run: a float model trained elsewhere, as ONNX or as weights (.pt, .safetensors).",
            rich_help_panel=IMPORT_PANEL,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set to calibrate on, by name, path or import path.", rich_help_panel=IMPORT_PANEL),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds the data set.", rich_help_panel=IMPORT_PANEL)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that weights belong to: a name (cpt models) or an import path.",
            rich_help_panel=IMPORT_PANEL,
        ),
    ] = None,
    calibration_batches: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches of 32 training images to calibrate on.",
            rich_help_panel=IMPORT_PANEL,
            show_default="16",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="File of class names, one a line.", rich_help_panel=IMPORT_PANEL, show_default="the data set's"
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            help="Height and width of the images in pixels, as 32 or 224x224.",
            rich_help_panel=IMPORT_PANEL,
            show_default="the file's, or the data set's",
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(
            min=1, max=3, help="1 or 3.", rich_help_panel=IMPORT_PANEL, show_default="the file's, or the data set's"
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="What training subtracted from pixels of 0 to 1, a number a channel, joined by commas.",
            rich_help_panel=IMPORT_PANEL,
            show_default="the data set's; for models of torchvision their published weights'",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="What it divided by then.", rich_help_panel=IMPORT_PANEL, show_default="likewise"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in the bundle.", rich_help_panel=IMPORT_PANEL, show_default="the file's"),
    ] = None,
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Freeze the trained model of a run to integers and write a bundle: the directory that ships.

    Layers and activations that held the upper bound in training keep it. At other bits than the upper bound, and for
    --native, the activation ranges and BatchNorm statistics are estimated anew on training data first. A bundle of
    the same name is replaced; nothing half-written is ever left.

    A run of a language model is written likewise, with its state as inputs and outputs; with affine activations and
    without further formats. --budget measures sensitivity as the rise of its loss on validation text.

    With --from, a float model that was trained elsewhere is quantized by calibration alone.
    """
    from cpt_cli.export_options import check_origin, parsed_numbers, parsed_size
    from cpt_deploy.bundle import chosen_formats
    from cpt_deploy.workflows import ExportOptions, FloatModel, export_float_model, export_run

    only_from = {
        "--data": data, "--data-dir": data_dir, "--model": model, "--calibration-batches": calibration_batches,
        "--labels": labels, "--input-size": input_size, "--channels": channels, "--mean": mean, "--std": std,
        "--name": name,
    }  # fmt: skip
    check_origin(run, source, only_from, {"--budget": budget, "--force": force or None})
    if bits is not None and budget is not None:
        raise UsageError(
            "Expected either --bits or --budget, but got both", hint="--budget chooses the bits of each layer"
        )
    options = ExportOptions(
        bits=bits,
        activation_bits=act_bits,
        budget=budget,
        native=native,
        symmetric=activations is Activations.SYMMETRIC,
        opset=opset,
        formats=chosen_formats(format_ or ()),
        force=force,
    )
    if source is None:
        assert run is not None
        bundle = export_run(run, options, destination=destination, reporter=out)
    else:
        assert data is not None
        described = {
            "size": parsed_size(input_size),
            "channels": channels,
            "mean": parsed_numbers("--mean", mean),
            "std": parsed_numbers("--std", std),
        }
        float_model = FloatModel(
            source,
            data,
            data_dir=data_dir,
            model=model,
            labels=labels,
            input={key: value for key, value in described.items() if value is not None},
            name=name,
            **({} if calibration_batches is None else {"batches": calibration_batches}),
        )
        bundle = export_float_model(float_model, options, destination=destination, reporter=out)
    summary = show_export(bundle)
    if out.quiet:
        out.line(readable.path(bundle.path))
    out.result(
        {
            "bundle": bundle.path,
            "name": bundle.name,
            **summary.content,
            "facts": bundle.facts,
            "sha256": bundle.sha256,
            "files_bytes": files_bytes(bundle),
            "golden": summary.golden,
        }
    )
    out.hint(f"cpt validate {readable.path(bundle.path)} --data {data or bundle.facts['dataset']}")


COMMAND = Command(
    name="export",
    function=export,
    panel=TRAIN_PANEL,
    examples=(
        "cpt export runs/digits --bits 4 --act-bits 4  # 8 bits without these; activations too, where they cycled",
        "cpt export runs/digits --budget 0.6  # bits by layer, 60 % of the size of 8-bit weights",
        "cpt export --from model.onnx --data photos/  # trained elsewhere, in float: calibration only",
        "cpt export runs/digits --format torchscript,pt2  # for programs that have PyTorch but not onnxruntime",
    ),
)
