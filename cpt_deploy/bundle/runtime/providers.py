"""Choose onnxruntime's execution providers by short names, with hints on the packages for a missing one."""

import contextlib
import functools
import io
from pathlib import Path
from typing import Any

from cpt_deploy.errors import MissingExtraError, UsageError

CPU = "CPUExecutionProvider"
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"

_SHORT = {"cpu": CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}
_FALLBACKS = {CPU: (), _CUDA: (CPU,), _TENSORRT: (_CUDA, CPU)}
_INSTALL = {
    _CUDA: "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'",
    _TENSORRT: "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
}


def provider_name(provider: str) -> str:
    """Return onnxruntime's name of an execution provider, given a short name ("cpu", "cuda", "tensorrt") or its own."""
    name, _, _library = provider.partition("=")
    return _SHORT.get(name, name)


def provider_names(provider: str) -> list[str]:
    """Return the list of providers for a session: the given one, then fallbacks for operators that it lacks.

    Args:
        provider: "cpu", "cuda", "tensorrt", or onnxruntime's name of any built-in provider.

    Raises:
        UsageError: If onnxruntime has no provider of that name.
        MissingExtraError: If the installed onnxruntime was built without the provider.
    """
    import onnxruntime

    name, available = provider_name(provider), onnxruntime.get_available_providers()
    if name not in onnxruntime.get_all_providers() and name not in available:
        raise UsageError(
            f"Expected an execution provider of onnxruntime, but got {provider!r}",
            hint=f"available here: {', '.join(available)}; cpu, cuda and tensorrt are short names",
        )
    if name not in available:
        raise MissingExtraError(
            f"Expected an onnxruntime with the {name}, but the one that is installed has {', '.join(available)}",
            hint=_INSTALL.get(name, "install a build of onnxruntime that has it"),
        )
    if name in _INSTALL:
        _load_libraries(onnxruntime)
    fallbacks = _FALLBACKS.get(name, (CPU,))
    return [name, *(fallback for fallback in fallbacks if fallback in available)]


def choose_provider(options: Any, provider: str) -> dict[str, list[str]]:
    """Return the session arguments that select a provider; a provider from a library is selected in the options.

    Args:
        options: The session's `onnxruntime.SessionOptions`.
        provider: As for `provider_names`, or NAME=PATH for a provider in the shared library at the path.

    Raises:
        UsageError: If the provider or the library does not exist, or the library has no device of it on this machine.
        MissingExtraError: If the installed onnxruntime was built without the provider.
    """
    name, is_plugin, library = provider.partition("=")
    if not is_plugin:
        return {"providers": provider_names(provider)}
    options.add_provider_for_devices(_plugin_devices(name, library), {})
    return {}


@functools.cache
def _plugin_devices(name: str, library: str) -> list[Any]:
    """Return the devices of an execution provider in a library, which is loaded once per process."""
    import onnxruntime

    hint = (
        f"NAME=PATH, with the provider's name in onnxruntime and its shared library; available without a library: "
        f"{', '.join(onnxruntime.get_available_providers())}"
    )
    # onnxruntime's exceptions have no common base class.
    try:
        onnxruntime.register_execution_provider_library(name, str(Path(library).resolve()))
    except Exception as error:
        reason = " ".join(str(error).split()).rpartition("FAIL : ")[2]
        raise UsageError(
            f"Expected a library with the execution provider {name!r} at {library!r}, but got: {reason}", hint=hint
        ) from error
    devices = onnxruntime.get_ep_devices()
    chosen = [device for device in devices if device.ep_name == name]
    if not chosen:
        found = sorted({device.ep_name for device in devices})
        onnxruntime.unregister_execution_provider_library(name)
        raise UsageError(
            f"Expected the library {library} to bring the execution provider {name!r} and a device for it, but with it "
            f"there are {', '.join(found)}",
            hint=hint,
        )
    return chosen


def check_started(session: Any, provider: str) -> None:
    """Check that a session uses the requested provider.

    If a provider's libraries cannot be loaded, onnxruntime silently continues without it.

    Raises:
        MissingExtraError: If the session does not use it.
    """
    name, started = provider_name(provider), session.get_providers()
    if name not in started:
        raise MissingExtraError(
            f"Expected onnxruntime to start the {name}, but it went on with {', '.join(started)}: there is no such "
            "device, or its libraries could not be loaded",
            hint=_INSTALL.get(name, "onnxruntime logs the reason at a lower log level"),
        )


def keeps_operators(provider: str) -> bool:
    """Return whether a provider runs the graph's operators one by one instead of compiling parts of the graph."""
    return provider_name(provider) in (CPU, _CUDA)


@functools.cache
def rounds_as_the_executor(provider: str) -> bool:
    """Return whether a provider gives the integer executor's integers: the CPU does."""
    return provider_name(provider) == CPU


def _load_libraries(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from Python packages, without onnxruntime's printed messages on missing libraries."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
