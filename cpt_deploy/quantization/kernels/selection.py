"""Which kernels this process uses on a device: those made for it that run here, or torch's own operations."""

import ctypes
import functools
import os
import subprocess
from dataclasses import dataclass

import torch

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.kernels.compile import FOLDER, levels, object_path, sources_digest
from cpt_deploy.quantization.kernels.interface import Kernels
from cpt_deploy.quantization.kernels.native import NativeKernels
from cpt_deploy.quantization.kernels.reference import TorchKernels

VARIABLE = "CPT_KERNELS"
CHOICES = ("auto", "native", "triton", "torch")
#: What Triton compiles for.
_LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernels in use on a device.

    Attributes:
        kernels: The backend.
        native: Whether it is made for the device.
        reason: Why it is not, or an empty string.
    """

    kernels: Kernels
    native: bool
    reason: str = ""


@functools.cache
def active(device: str = "cpu") -> Selection:
    """Choose once a process and kind of device; `CPT_KERNELS` forces a choice.

    On a CPU these are the compiled kernels (`native`), or Triton's in its interpreter, if it is asked for; on a GPU
    Triton's.

    Args:
        device: Type of the device, "cpu" or "cuda".

    Raises:
        UsageError: If the variable holds no choice, or kernels are asked for that are not there.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise UsageError(f"Expected {VARIABLE} to be one of {', '.join(CHOICES)}, but got {wanted!r}")
    if wanted == "torch":
        return Selection(TorchKernels(), native=False, reason=f"{VARIABLE}=torch")
    compiled = device == "cpu" and wanted != "triton"
    found = load_native() if compiled else load_triton(device)
    if not isinstance(found, str):
        return Selection(found, native=True)
    if wanted == "native" and compiled:
        raise UsageError(
            f"Expected compiled kernels because of {VARIABLE}=native, but {found}",
            hint="install the project again where there is a C compiler",
        )
    if wanted == "triton":
        raise UsageError(f"Expected Triton's kernels because of {VARIABLE}=triton, but {found}")
    return Selection(TorchKernels(), native=False, reason=found)


def kernels_on(device: torch.device) -> Kernels:
    """Return the kernels for tensors on a device; a graph that is being compiled takes plain torch."""
    return TorchKernels() if torch.compiler.is_compiling() else active(device.type).kernels


def load_triton(device: str) -> Kernels | str:
    """Load Triton's kernels and try one on a kind of device, or say why they are not used."""
    try:
        import triton

        from cpt_deploy.quantization.kernels.triton_backend import TritonKernels
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if device == "cpu" and not triton.knobs.runtime.interpret:
        return "on a CPU they need TRITON_INTERPRET=1, set before Triton is imported"
    if device not in ("cpu", "cuda"):
        return f"there are none for {device}"
    if device == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        return "Triton needs a card of compute capability 8.0"
    kernels = TritonKernels()
    try:  # the first launch compiles a launcher, which needs a C compiler
        low, high = kernels.range(torch.arange(3.0, device=device))
        found = float(low), float(high)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"Triton's kernels do not run: {error}"
    return kernels if found == (0.0, 2.0) else f"Triton's kernels find the range {found} where it is (0, 2)"


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
