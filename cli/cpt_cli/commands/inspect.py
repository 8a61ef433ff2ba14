"""`cpt inspect`: look into an ONNX file or a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.shown.onnx_file import show_inspection
from cpt_deploy import readable


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|BUNDLE|RUN", help="ONNX file of any tool, a bundle, or its run.")
    ],
) -> None:
    """Show what onnxruntime makes of a model on this processor: what runs on integers, what stays in float and why.

    Needs no data. Findings say what to change in the tool that wrote the file; they are no errors.
    """
    from cpt_deploy.workflows import bundle_at, inspect_model

    path = bundle_at(path)
    inspection = inspect_model(path)
    show_inspection(inspection)
    out.result({"path": path, **inspection.to_dict()})
    if inspection.quantized:
        out.hint(f"cpt validate {readable.argument(path)}")
    else:
        out.hint(f"cpt export --from {readable.argument(path)} --data inputs.npz")


COMMAND = Command(
    inspect,
    "cpt inspect model.onnx  # written by any tool, quantized or not",
    "cpt inspect runs/digits/bundle-8bit --json",
)
