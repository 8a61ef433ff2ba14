"""Write and read checkpoints: one safetensors file with all tensors, other state as JSON in its header, and a checksum.

No pickle is involved.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cpt_deploy.errors import CheckpointError
from cpt_deploy.training.run_directory.files import disk_errors, write_atomically

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run.

    Args:
        tensors: Weights, optimizer and generator states by name.
        state: Everything else, as JSON types.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, hint: str | None = None) -> None:
    """Write a checkpoint atomically: after a crash or on a full disk the previous file is unchanged.

    Args:
        path: The file.
        checkpoint: The state to write; tensors are copied to the CPU.
        hint: Hint of the error if it cannot be written.

    Raises:
        DataError: If it cannot be written.
    """
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps({"format_version": FORMAT_VERSION, **checkpoint.state})
    metadata = {"format": "pt", "cpt_state": state, "cpt_sha256": _checksum(tensors, state)}
    with disk_errors("a checkpoint", path, hint=hint):
        write_atomically(path, save(tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its checksum.

    Raises:
        CheckpointError: If the file is missing, truncated, damaged, or written by a newer version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Expected a whole checkpoint at {path}, but got: {error}",
            hint="if the other file in checkpoints/ is whole, copy it over this one and resume",
        ) from error
    state = metadata.get("cpt_state", "")
    if metadata.get("cpt_sha256") != _checksum(tensors, state):
        raise CheckpointError(
            f"Expected checkpoint {path} to agree with its checksum, but it does not: it is damaged",
            hint="if the other file in checkpoints/ is whole, copy it over this one and resume",
        )
    values = json.loads(state)
    if values["format_version"] != FORMAT_VERSION:
        newer = values["format_version"] > FORMAT_VERSION
        raise CheckpointError(
            f"Expected a checkpoint of format {FORMAT_VERSION} at {path}, but got format {values['format_version']}",
            hint="a newer cpt-deploy wrote it: install that version"
            if newer
            else "an older cpt-deploy wrote it: train again",
        )
    return Checkpoint(tensors, values)


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    """Return the SHA-256 of the state and of all tensors with their names, types and shapes."""
    total = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
