"""Select the kernels of this process for a device: compiled ones if they run here, otherwise plain torch."""

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
#: Min compute capability that Triton supports.
_MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernels in use on a device.

    Attributes:
        kernels: The backend.
        native: Whether the backend is compiled for the device.
        reason: Why it is not, or an empty string.
    """

    kernels: Kernels
    native: bool
    reason: str = ""


@functools.cache
def active(device: str = "cpu") -> Selection:
    """Return the selected backend, once per process and device type; the variable `CPT_KERNELS` overrides it.

    On a CPU this is the compiled one (`native`), or on request Triton's in its interpreter; on a GPU Triton's.

    Args:
        device: Type of the device, "cpu" or "cuda".

    Raises:
        UsageError: If the variable has an unknown value, or the requested kernels are not available.
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
            hint="install the project again with a C compiler available",
        )
    if wanted == "triton":
        raise UsageError(f"Expected Triton's kernels because of {VARIABLE}=triton, but {found}")
    return Selection(TorchKernels(), native=False, reason=found)


def kernels_on(device: torch.device) -> Kernels:
    """Return the kernels for tensors on a device; while torch compiles a graph, plain torch."""
    return TorchKernels() if torch.compiler.is_compiling() else active(device.type).kernels


def load_triton(device: str) -> Kernels | str:
    """Load Triton's kernels and run one on the device type; return the reason if they cannot be used."""
    try:
        import triton
        import triton.errors

        from cpt_deploy.quantization.kernels.triton.backend import TritonKernels
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if device == "cpu" and not triton.knobs.runtime.interpret:
        return "on a CPU they need TRITON_INTERPRET=1, set before Triton is imported"
    if device not in ("cpu", "cuda"):
        return f"there are none for {device}"
    if device == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() < _MIN_CAPABILITY:
        return "Triton needs a GPU of compute capability 8.0"
    kernels = TritonKernels()
    try:  # the first launch compiles a launcher, which needs a C compiler
        low, high = kernels.range(torch.arange(3.0, device=device))
        found = float(low), float(high)
    except (RuntimeError, OSError, subprocess.SubprocessError, triton.errors.TritonError) as error:
        return f"Triton's kernels do not run: {error}"
    return kernels if found == (0.0, 2.0) else f"Triton's kernels find the range {found} instead of (0, 2)"


def native_levels() -> tuple[str, ...] | str:
    """Return the instruction sets that this processor supports, in ascending order, or why no kernels are compiled."""
    names = tuple(levels())
    plain = _load(names[0])
    if isinstance(plain, str):
        return plain
    return names[: 1 + min(plain.cpt_instruction_level(), len(names) - 1)]


def load_native(level: str | None = None) -> NativeKernels | str:
    """Load the object of an instruction set, by default the best for this processor; return the reason on failure."""
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
        return f"they were not compiled at installation; with a C compiler: python {FOLDER / 'compile.py'}"
    try:
        library = ctypes.CDLL(str(path))
        library.cpt_sources.restype = ctypes.c_char_p
        built_from = library.cpt_sources().decode()
    except (OSError, AttributeError) as error:
        return f"they cannot be loaded: {error}"
    if built_from != sources_digest():
        return f"they were compiled from other sources: python {FOLDER / 'compile.py'}"
    return library
