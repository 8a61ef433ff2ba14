"""`cpt export`: freeze a trained model to integers and write the bundle that ships."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.export_options import Activations, Channels, Checkpoint, InputKind, Interpolation, Layout
from cpt_cli.output import out
from cpt_cli.shown.export_summary import files_bytes, show_export
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

IMPORT_PANEL = "Models trained elsewhere"
INPUT_PANEL = "Bytes of images as input"


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
        typer.Argument(
            help="Directory or name of a run, or one of its bundles; not with --from.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, help="Weight bits of layers with scheduled precision.", show_default="the run's max_bits"
        ),
    ] = None,
    act_bits: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=8,
            help="Bits of activations with scheduled precision in training.",
            show_default="the run's max_bits",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Instead of --bits: maximum size of the weights as a fraction of that at 8 bits; the bits of each "
            "layer are chosen by its measured sensitivity.",
        ),
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Directory of the bundle.",
            show_default="RUN/bundle-8bit or similar; with --from FILE-bundle-8bit next to the file",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset, 13 to 25. Weights of 3 and 4 bits are packed two per byte "
            "from opset 21, weights of 2 bits four per byte from 25; all others take one byte each.",
            show_default="17, or the lowest opset that packs the weights or has all operators",
        ),
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Further formats of the model, joined by commas or repeated; see --list-formats.",
            metavar="NAMES",
        ),
    ] = None,
    list_formats: Annotated[
        bool,
        typer.Option("--list-formats", help="List the formats and exit.", callback=_list_formats, is_eager=True),
    ] = False,
    checkpoint: Annotated[
        Checkpoint | None,
        typer.Option(
            help="last: the state after the last step. best: that of the best evaluation, calibrated in RUN/best.",
            show_default="last",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Export at bits that the run never trained at.")] = False,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Keep the full range of 8-bit weights: for processors with VNNI; other x86 processors then need "
            "slower kernels.",
        ),
    ] = False,
    activations: Annotated[
        Activations,
        typer.Option(
            help="affine: uint8, fastest in onnxruntime. symmetric: int8 with zero point 0, for TensorRT and similar "
            "runtimes."
        ),
    ] = Activations.AFFINE,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Instead of a run: a float model trained elsewhere, any ONNX file or weights (.pt, .safetensors).",
            rich_help_panel=IMPORT_PANEL,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="What to calibrate on: a data set of images, by name, path or import path; for any ONNX file also "
            "values of its inputs, as a file .npz with an array (rows, ...) of each, or a folder of .npy or .npz.",
            rich_help_panel=IMPORT_PANEL,
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set.", rich_help_panel=IMPORT_PANEL)] = None,
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
            help="File of class names, one per line.", rich_help_panel=IMPORT_PANEL, show_default="the data set's"
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
    input_: Annotated[
        InputKind | None,
        typer.Option(
            "--input",
            help="uint8: the bundle's files take the bytes of images, with the normalisation inside.",
            rich_help_panel=INPUT_PANEL,
            show_default="normalised images, float32 NCHW",
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(help="Layout of the bytes.", rich_help_panel=INPUT_PANEL, show_default="NHWC"),
    ] = None,
    channels: Annotated[
        Channels | None,
        typer.Option(
            help="Order of the bytes' channels, RGB or BGR; with --from 1 or 3, the number of channels.",
            rich_help_panel=INPUT_PANEL,
            show_default="RGB; the file's or the data set's number",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean that training subtracted from pixels in 0..1: one number per channel, joined by commas.",
            rich_help_panel=IMPORT_PANEL,
            show_default="the data set's; for models of torchvision and timm that of their published weights",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            help="Standard deviation that training divided by, likewise.",
            rich_help_panel=IMPORT_PANEL,
            show_default="as for --mean",
        ),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the shorter side before the centre crop.",
            rich_help_panel=IMPORT_PANEL,
            show_default="as for --mean",
        ),
    ] = None,
    interpolation: Annotated[
        Interpolation | None,
        typer.Option(
            help="Interpolation of resized images.", rich_help_panel=IMPORT_PANEL, show_default="as for --mean"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in the bundle.", rich_help_panel=IMPORT_PANEL, show_default="the file's"),
    ] = None,
) -> None:
    """Freeze the trained model of a run to integers and write a bundle: the directory that ships.

    Layers and activations with fixed precision in training stay at max_bits. At bits other than max_bits, and with
    --native, activation ranges and BatchNorm statistics are first calibrated on training data. A bundle of the same
    name is replaced; an incomplete bundle is never left behind.

    The states of a model, such as those of an LSTM, are inputs and outputs of model.onnx. --budget measures how far the
    outputs change if a layer alone has fewer bits.

    With --from, a float model that was trained elsewhere is quantized by calibration only: an image classifier with a
    data set, or an ONNX file of any inputs and outputs with values of its inputs.

    With --input uint8 the model computes the same integers from the bytes of images.
    """
    from cpt_cli.export_options import check_origin, parsed_numbers, parsed_pixels, parsed_size
    from cpt_deploy.bundle import chosen_formats
    from cpt_deploy.workflows import ExportOptions, FloatModel, best_of, export_float_model, export_run, run_at

    number = int(channels) if channels in (Channels.ONE, Channels.THREE) else None
    order = channels if number is None else None
    only_from = {
        "--data": data, "--data-dir": data_dir, "--model": model, "--calibration-batches": calibration_batches,
        "--labels": labels, "--input-size": input_size, "--channels 1 or 3": number, "--mean": mean, "--std": std,
        "--resize": resize, "--interpolation": interpolation, "--name": name,
    }  # fmt: skip
    check_origin(run, source, only_from, {"--budget": budget, "--force": force or None, "--checkpoint": checkpoint})
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
        pixels=parsed_pixels(input_, layout, order),
    )
    if source is None:
        assert run is not None
        run = run_at(run)
        run = best_of(run, out) if checkpoint is Checkpoint.BEST else run
        bundle = export_run(run, options, destination=destination, reporter=out)
    else:
        assert data is not None
        described = {
            "size": parsed_size(input_size),
            "channels": number,
            "mean": parsed_numbers("--mean", mean),
            "std": parsed_numbers("--std", std),
            "resize": resize,
            "interpolation": None if interpolation is None else interpolation.value,
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
    written = readable.argument(bundle.path)
    if data is not None:
        folder = "" if data_dir is None else f" --data-dir {readable.argument(data_dir)}"
        out.hint(f"cpt validate {written} --data {quote(data)}{folder}")
    else:
        inside = run is not None and bundle.path.resolve().is_relative_to(run.resolve())
        out.hint(f"cpt validate {written}" + ("" if inside or run is None else f" --run {readable.argument(run)}"))


COMMAND = Command(
    export,
    "cpt export runs/digits --bits 6 --act-bits 6  # weights and activations at 6 bits; the default is 8",
    "cpt export runs/digits --checkpoint best  # the model of the best evaluation",
    "cpt export --from model.onnx --data photos/  # trained elsewhere, in float: calibration only",
    "cpt export --from detector.onnx --data inputs.npz  # any inputs and outputs: named tensors",
    "cpt export runs/digits --input uint8  # the file takes the bytes of images",
)
