"""Which kind of file a foreign model is, told by its content where that is safe, and by its name."""

import zipfile
from pathlib import Path

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models.imported.onnx_source import OnnxSource
from cpt_deploy.models.imported.weights_source import WeightsSource

ONNX_SUFFIX = ".onnx"
WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_EXPORTED = {"archive_format", "serialized_exported_program.json"}
"""Entries that only the archives of exported programs have, of present and of earlier PyTorch."""
_TO_ONNX = 'torch.onnx.export(model, (example,), "model.onnx", dynamo=True)'


SourceModel = OnnxSource | WeightsSource
"""A float model in a file; both kinds tell what the file fixes of input and classes, and build the module."""


def open_source(path: Path, model: str | None = None) -> SourceModel:
    """Open the file of a trained float model; nothing in it is executed.

    Args:
        path: An ONNX file, or the weights of a model: a state dict that `torch.save` wrote, or safetensors.
        model: The name or import path of the model that weights belong to; an ONNX file holds its own.

    Raises:
        DataError: If the file is missing or damaged.
        UsageError: If the file is of a kind that cannot be read safely, or weights come without a model.
        ConversionError: If an ONNX file holds something else than an image classifier.
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
    """Raise if a file is a PyTorch program: reading one can run code of its author, which weights cannot."""
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
