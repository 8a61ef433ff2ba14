"""Read the weights of a model that is known by name, without executing anything in the file."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models.auxiliary_heads import split_auxiliary_heads
from cpt_deploy.models.catalog import build_model

WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_EXPORTED = {"archive_format", "serialized_exported_program.json"}
"""Entries that only archives of exported programs have, in current and in earlier PyTorch versions."""
_TO_ONNX = 'torch.onnx.export(model, (example,), "model.onnx", dynamo=True)'
_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema_state_dict")
"""Keys under which training scripts commonly save the weights, next to optimizer and epoch."""
_PARALLEL_PREFIX = "module."
_HOW_TO_SAVE = 'save the weights alone: torch.save(model.state_dict(), "weights.pt"), or as safetensors'


@dataclass(frozen=True, eq=False)
class WeightsSource:
    """A state dict and the model that it belongs to.

    Args:
        architecture: Name or import path of the model.
        weights: Tensors by name.
        file: Name of the file, for messages.
    """

    architecture: str
    weights: Mapping[str, Tensor]
    file: str

    @classmethod
    def read(cls, path: Path, model: str | None = None) -> "WeightsSource":
        """Read a state dict from safetensors or from a file of `torch.save`.

        Args:
            path: The file.
            model: Name or import path of the model that the weights belong to.

        Raises:
            DataError: If the file is missing or damaged.
            UsageError: If no model is given, or the file is of a kind that cannot be read safely: a program, or a
                pickle with Python objects; or it has no tensors.
        """
        if not path.is_file():
            found = "a directory" if path.is_dir() else "nothing"
            raise DataError(f"Expected the file of a trained model at {path}, but there is {found}")
        _refuse_programs(path)
        if path.suffix not in WEIGHTS_SUFFIXES:
            raise UsageError(
                f"Expected a model as .onnx or weights as {', '.join(WEIGHTS_SUFFIXES)}, but got {path.name}"
            )
        if model is None:
            raise UsageError(
                f"Expected the model that the weights in {path.name} belong to, but got none",
                hint="--model torchvision/resnet18, or --model my_package.nets:small; an ONNX file needs none",
            )
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        return cls(model, _state_dict(content, path.name), path.name)

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the model and load all weights but those of `auxiliary_heads`; in evaluation mode.

        Raises:
            UsageError: If the model is unknown or the weights belong to another model.
        """
        channels, height, width = input_shape
        model = build_model(
            self.architecture, num_classes=classes, in_channels=channels, input_size=(height, width)
        ).eval()
        try:
            model.load_state_dict(split_auxiliary_heads(model, self.weights)[0])
        except RuntimeError as error:
            reasons = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
            raise UsageError(
                f"Expected the weights in {self.file} to be those of {self.architecture} with {classes} classes and "
                f"{channels} channels, but got: {_shortened(reasons[0])}",
                hint="the data set decides the number of classes; --channels decides that of the first layer",
            ) from error
        return model

    def auxiliary_heads(self, network: nn.Module) -> tuple[str, ...]:
        """Return the paths of the auxiliary training heads that are in the file but not in the network."""
        return split_auxiliary_heads(network, self.weights)[1]


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


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"Expected weights in {path}, but it is no safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "Unsupported" not in str(error) and "GLOBAL" not in str(error):
            raise DataError(f"Expected weights in {path}, but it is damaged or of another kind") from error
        raise UsageError(
            f"Expected weights in {path.name}, but it holds Python objects, which could run any code when read",
            hint=_HOW_TO_SAVE,
        ) from error
    # The exception depends on where the archive is damaged.
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, AttributeError, IndexError) as error:
        raise DataError(f"Expected weights in {path}, but it is damaged or of another kind") from error


def _state_dict(content: Any, file: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        wrapped = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        content = content if wrapped is None else wrapped
    tensors = {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UsageError(
            f"Expected {file} to hold tensors by name, but it holds something else "
            f"({_shortened(', '.join(tensors) or type(content).__name__)})",
            hint=_HOW_TO_SAVE,
        )
    if all(name.startswith(_PARALLEL_PREFIX) for name in tensors):
        return {name.removeprefix(_PARALLEL_PREFIX): value for name, value in tensors.items()}
    return tensors


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
