"""`cpt info`: the machine and the versions, as one would quote them with a measurement or a question."""

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

from cpt_cli.command import LOOK_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy import __version__


PACKAGES = ("numpy", "onnxruntime", "onnx", "torch", "torchvision", "fastapi", "uvicorn", "pillow", "pydantic", "typer")

# Those that decide how fast integers and bfloat16 are; the server's answer does not depend on them.
CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm", "bf16")


def info(json_output: JsonFlag = False, quiet: QuietFlag = False, debug: DebugFlag = False) -> None:
    """Show versions, the processor and what it is good at, threads, and the device that training would use."""
    versions = {"cpt-deploy": __version__, "python": platform.python_version(), **_package_versions()}
    processor = _processor()
    training = _training_device()
    out.fields("Versions", {name: version or "not installed" for name, version in versions.items()})
    out.fields(
        "Machine",
        {
            "system": platform.platform(),
            "processor": processor["name"],
            "cores": f"{processor['usable_cores']} usable of {os.cpu_count()}",
            "useful flags": ", ".join(processor["flags"]) or "none that are known",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
            "CPT_DATA_DIR": os.environ.get("CPT_DATA_DIR", "not set"),
        },
    )
    out.fields("Runtimes", {"onnxruntime": ", ".join(_providers()), "training": _describe(training)})
    out.result({"versions": versions, "processor": processor, "providers": _providers(), "training": training})


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _processor() -> dict[str, Any]:
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux: the name is all there is to say
        fields = {}
    present = (fields.get("flags") or fields.get("Features") or "").split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "usable_cores": usable,
        "flags": [flag for flag in CPU_FLAGS if flag in present],
    }


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _training_device() -> dict[str, Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": "cuda" if cuda else "cpu",
        "name": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads(),
    }


def _describe(training: dict[str, Any] | None) -> str:
    if training is None:
        return "torch is not installed: pip install 'cpt-deploy[train]'"
    name = f"{training['device']} ({training['name']})" if training["name"] else training["device"]
    return f"{name}, {training['threads']} threads"


COMMAND = Command(
    name="info", function=info, panel=LOOK_PANEL, examples=("cpt info", "cpt info --json  # to paste into a report")
)
