"""The backends of kernels that this machine runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cpt_deploy.quantization.kernels import Kernels
from cpt_deploy.quantization.kernels.compile import levels
from cpt_deploy.quantization.kernels.selection import load_native, load_triton, native_levels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class OnDevice:
    """Kernels of another device, for tensors on the CPU."""

    def __init__(self, kernels: Kernels, device: str) -> None:
        self._kernels, self._device = kernels, device

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        return lambda *arguments: moved(function(*moved(arguments, self._device)), "cpu")


def moved(value: Any, device: str) -> Any:
    """Return tensors, in tuples or alone, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        entries = [moved(entry, device) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def _params() -> list[Any]:
    if INTERPRETED:
        return ["triton"]
    return [*levels(), *([pytest.param("triton", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=_params())
def native(request: pytest.FixtureRequest) -> Any:
    """The compiled kernels of one instruction set; in Triton's interpreter, or on a GPU, Triton's."""
    if request.param == "triton":
        return interpreted_or_on_gpu()
    names = native_levels()
    if isinstance(names, str):
        pytest.skip(f"no compiled kernels: {names}")
    if request.param not in names:
        pytest.skip(f"this processor does not run {request.param}")
    kernels = load_native(request.param)
    assert not isinstance(kernels, str), kernels
    return kernels


@pytest.fixture
def in_place(native: Any) -> bool:
    """Whether what these kernels update is the caller's, not a copy on another device."""
    return not isinstance(native, OnDevice)


def interpreted_or_on_gpu() -> Any:
    """Return Triton's kernels for tensors on the CPU."""
    device = "cpu" if INTERPRETED else "cuda"
    kernels = load_triton(device)
    assert not isinstance(kernels, str), kernels
    return kernels if INTERPRETED else OnDevice(kernels, device)


@pytest.fixture
def triton_kernels() -> Any:
    """Triton's kernels, in its interpreter or on a GPU."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs TRITON_INTERPRET=1, or a GPU")
    return interpreted_or_on_gpu()


@pytest.fixture
def run_interpreted() -> Callable[..., None]:
    """What runs the tests of files where Triton interprets: all pass, none is skipped for want of the interpreter."""

    def run(*files: str) -> None:
        line = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *files]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        # How many run differs from processor to processor; that Triton's do is what this is about.
        assert " passed" in done.stdout
        assert "needs TRITON_INTERPRET" not in done.stdout

    return run
