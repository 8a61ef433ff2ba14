"""Open a float model that was trained elsewhere, after determining the kind of file by its content and its name."""

import zipfile
from pathlib import Path

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models.imported.onnx_source import OnnxSource
from cpt_deploy.models.imported.weights_source import WeightsSource

ONNX_SUFFIX = ".onnx"
WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_EXPORTED = {"archive_format", "serialized_exported_program.json"}
"""Entries that only archives of exported programs have, in current and in earlier PyTorch versions."""
_TO_ONNX = 'torch.onnx.export(model, (example,), "model.onnx", dynamo=True)'


SourceModel = OnnxSource | WeightsSource
"""A float model in a file; both kinds give the input shape and classes as far as known, and build the module."""


def open_source(path: Path, model: str | None = None) -> SourceModel:
    """Open the file of a trained float model without executing anything in it.

    Args:
        path: An ONNX file, or the weights of a model: a state dict that `torch.save` wrote, or safetensors.
        model: The name or import path of the model that weights belong to; None for an ONNX file.

    Raises:
        DataError: If the file is missing or damaged.
        UsageError: If the file is of a kind that cannot be read safely, or weights are given without a model.
        ConversionError: If an ONNX file is not an image classifier.
    """
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise DataError(f"Expected the file of a trained model at {path}, but there is {found}")
    if path.suffix == ONNX_SUFFIX:
        if model is not None:
            raise UsageError("Expected --model with weights only, but an ONNX file holds its network itself")
        return OnnxSource.read(path)
    _refuse_programs(path)
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise UsageError(
            f"Expected a model as {ONNX_SUFFIX} or weights as {', '.join(WEIGHTS_SUFFIXES)}, but got {path.name}"
        )
    if model is None:
        raise UsageError(
            f"Expected the model that the weights in {path.name} belong to, but got none",
            hint="--model torchvision/resnet18, or --model my_package.nets:small; an ONNX file needs none",
        )
    return WeightsSource.read(path, model)


def _refuse_programs(path: Path) -> None:
    """Raise if a file is a PyTorch program: reading one can run its author's code, unlike reading weights."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] if name.count("/") < 2 else name for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"Expected a readable file at {path}, but got: {error}") from error
    if "constants.pkl" in names:
        kind, load = "a TorchScript file", f'torch.jit.load("{path.name}")'
    elif names & _EXPORTED:
        kind, load = "a torch.export program", f'torch.export.load("{path.name}").module()'
    else:
        return
    raise UsageError(
        f"Expected an ONNX file or weights, but {path.name} is {kind}, which may run its author's code when read",
        hint=f"if you trust it, write it as ONNX first: model = {load}; {_TO_ONNX}",
    )
