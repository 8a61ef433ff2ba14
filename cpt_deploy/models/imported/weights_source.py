"""Read the weights of a model that is known by name, without executing anything in the file."""

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
    input_shape: tuple[int | None, int | None, int | None] = (None, None, None)
    classes: int | None = None

    @classmethod
    def read(cls, path: Path, model: str) -> "WeightsSource":
        """Read a state dict from safetensors or from a file of `torch.save`.

        Raises:
            DataError: If the file is damaged.
            UsageError: If it has Python objects, which only executing its pickle could restore, or no tensors.
        """
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        return cls(model, _state_dict(content, path.name), path.name)

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the model and load all weights but those of `auxiliary_heads`; see `SourceModel.build`.

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
