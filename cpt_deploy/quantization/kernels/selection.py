"""Which kernels this process uses: the compiled ones that fit the processor, or torch's own operations."""

import ctypes
import functools
import os
from dataclasses import dataclass

import torch

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.kernels.compile import FOLDER, levels, object_path, sources_digest
from cpt_deploy.quantization.kernels.interface import Kernels
from cpt_deploy.quantization.kernels.native import NativeKernels
from cpt_deploy.quantization.kernels.reference import TorchKernels

VARIABLE = "CPT_KERNELS"
CHOICES = ("auto", "native", "torch")


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernels in use.

    Attributes:
        kernels: The backend.
        native: Whether it is compiled.
        reason: Why it is not, or an empty string.
    """

    kernels: Kernels
    native: bool
    reason: str = ""


@functools.cache
def active() -> Selection:
    """Choose once a process; `CPT_KERNELS` forces a choice.

    Raises:
        UsageError: If the variable holds no choice, or compiled kernels are asked for that are not there.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise UsageError(f"Expected {VARIABLE} to be one of {', '.join(CHOICES)}, but got {wanted!r}")
    if wanted == "torch":
        return Selection(TorchKernels(), native=False, reason=f"{VARIABLE}=torch")
    found = load_native()
    if not isinstance(found, str):
        return Selection(found, native=True)
    if wanted == "native":
        raise UsageError(
            f"Expected compiled kernels because of {VARIABLE}=native, but {found}",
            hint="install the project again where there is a C compiler",
        )
    return Selection(TorchKernels(), native=False, reason=found)


def kernels_on(device: torch.device) -> Kernels:
    """Return the kernels for tensors on a device; where there are none of its own, plain torch."""
    return active().kernels if device.type == "cpu" else TorchKernels()


def native_levels() -> tuple[str, ...] | str:
    """Return the instruction sets that this processor runs, the least first, or why there are no compiled kernels."""
    names = tuple(levels())
    plain = _load(names[0])
    if isinstance(plain, str):
        return plain
    return names[: 1 + min(plain.cpt_instruction_level(), len(names) - 1)]


def load_native(level: str | None = None) -> NativeKernels | str:
    """Load the object of an instruction set, or the best there is for this processor, or say why there is none."""
    names = native_levels()
    if isinstance(names, str):
        return names
    reason = ""
    for name in reversed(names) if level is None else (level,):
        library = _load(name)
        if not isinstance(library, str):
            return NativeKernels(library, name)
        reason = library
    return reason


def _load(level: str) -> ctypes.CDLL | str:
    path = object_path(level)
    if not path.is_file():
        return "they were not compiled at installation"
    try:
        library = ctypes.CDLL(str(path))
        library.cpt_sources.restype = ctypes.c_char_p
        built_from = library.cpt_sources().decode()
    except (OSError, AttributeError) as error:
        return f"they cannot be loaded: {error}"
    if built_from != sources_digest():
        return f"they were compiled from other sources: python {FOLDER / 'compile.py'}"
    return library
