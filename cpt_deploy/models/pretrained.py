"""Read initial weights from a local file, and load them into a network that may have another number of classes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models.weights_source import WEIGHTS_SUFFIXES, WeightsSource
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.quantization.scheduled_model import BITS_KEY

_RUN_PREFIX = "network."
_RANGE = ("low", "high", "batches")
"""The buffers of an activation quantizer, which the model of a run has in addition to the network's tensors."""
_COUNTER = "num_batches_tracked"
"""The batch counter of a BatchNorm; files of earlier PyTorch versions lack it, and no result depends on it."""
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class PretrainedWeights:
    """Tensors of a trained network by name.

    Args:
        file: Name of their file, for messages.
        tensors: The tensors, without the ranges of quantizers.
        prepared: Whether they come from a run, whose network was converted by `prepare`.
    """

    file: str
    tensors: Mapping[str, Tensor]
    prepared: bool


def read_pretrained(path: Path, model: str) -> PretrainedWeights:
    """Read weights without executing anything in the file.

    Args:
        path: A state dict written by `torch.save`, also inside a checkpoint, or as safetensors; or the
            `model.safetensors` of a run.
        model: Name of the model that they belong to.

    Raises:
        DataError: If the file is missing or damaged, or has weights that are not finite.
        UsageError: If it is not a file of weights.
    """
    if path.is_file() and path.suffix not in WEIGHTS_SUFFIXES:
        raise UsageError(f"Expected weights as {', '.join(WEIGHTS_SUFFIXES)}, but got {path.name}")
    tensors = dict(WeightsSource.read(path, model).weights)
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise DataError(f"Expected finite weights in {path}, but got NaN or infinity in {_some(broken)}")
    weights = {name: value for name, value in tensors.items() if name != BITS_KEY}
    prepared = all(name.startswith(_RUN_PREFIX) for name in weights) and len(_without_ranges(weights)) < len(weights)
    if prepared:
        tensors = {name.removeprefix(_RUN_PREFIX): value for name, value in _without_ranges(weights).items()}
    return PretrainedWeights(path.name, tensors, prepared)


def last_layer(network: nn.Module, input_shape: tuple[int, ...]) -> str | None:
    """Return the name of the Linear or convolution that is computed last and thus gives the logits.

    Args:
        network: A classifier.
        input_shape: Shape of one input, without the batch.

    Returns:
        Its name, or `None` if the network calls no such module.
    """
    called: list[str] = []
    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    hooks = [part.register_forward_hook(lambda *_, name=name: called.append(name)) for name, part in layers]
    try:
        with torch.no_grad(), in_evaluation(network):
            network(torch.zeros(1, *input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return called[-1] if called else None


def load_pretrained(module: nn.Module, weights: PretrainedWeights, head: str | None, model: str) -> tuple[str, ...]:
    """Load weights in place.

    Args:
        module: The float network, or the network of its CPT model if the weights come from a run.
        weights: The weights to load.
        head: Name of the layer that gives the logits.
        model: Name of the model, for messages.

    Returns:
        Names of the tensors that are not loaded: those of a head whose number of classes differs from the file's.

    Raises:
        UsageError: If tensors are missing, unknown, or of a different shape.
    """
    wanted = _without_ranges(module.state_dict())
    given = weights.tensors
    fresh = _head_of_other_classes(wanted, given, head)
    missing = [name for name in wanted if name not in given and not name.endswith(_COUNTER)]
    unknown = [name for name in given if name not in wanted]
    reshaped = [
        name for name in wanted if name in given and name not in fresh and given[name].shape != wanted[name].shape
    ]
    if missing or unknown or reshaped:
        raise UsageError(
            f"Expected the weights in {weights.file} to be those of {model}, but "
            + "; ".join(
                part
                for part in (
                    missing and f"{len(missing)} are missing: {_some(missing)}",
                    unknown and f"{len(unknown)} are not its own: {_some(unknown)}",
                    reshaped and f"{len(reshaped)} have another shape: {_some(_shapes(reshaped, wanted, given))}",
                )
                if part
            ),
            hint=_hint([(wanted[name], given[name]) for name in reshaped], alone=not missing and not unknown),
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in given and name not in fresh:
                tensor.copy_(given[name])
    return fresh


def _head_of_other_classes(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], head: str | None
) -> tuple[str, ...]:
    """Return the tensors of the last layer if they differ from the file's only in the number of classes."""
    names = [name for name in (f"{head}.weight", f"{head}.bias") if name in wanted]
    if not names or not all(name in given for name in names):
        return ()
    pairs = [(wanted[name], given[name]) for name in names]
    alike = all(ours.dim() == theirs.dim() and ours.shape[1:] == theirs.shape[1:] for ours, theirs in pairs)
    return tuple(names) if alike and all(len(ours) != len(theirs) for ours, theirs in pairs) else ()


def _hint(reshaped: list[tuple[Tensor, Tensor]], *, alone: bool) -> str:
    """Return a hint; if only the channels of the first convolution differ, it suggests data.input.channels."""
    if alone and len(reshaped) == 1:
        ours, theirs = reshaped[0]
        if ours.dim() == theirs.dim() == 4 and len(ours) == len(theirs) and theirs.shape[1] in {1, 3}:
            channels = int(theirs.shape[1])
            return f"data.input.channels={channels} makes images of the {channels} channels that these weights read"
    return "model.name and model.args must be those that the weights were trained with; cpt models lists names"


def _shapes(names: Iterable[str], wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} is {_shape(given[name])} and not {_shape(wanted[name])}" for name in names]


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single value"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _without_ranges(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the buffers of activation quantizers, recognised by the three names under one parent."""

    def is_range(name: str) -> bool:
        parent, _, last = name.rpartition(".")
        return last in _RANGE and all(f"{parent}.{part}" in tensors for part in _RANGE)

    return {name: tensor for name, tensor in tensors.items() if not is_range(name)}
