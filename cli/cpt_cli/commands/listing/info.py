"""`cpt info`: show the machine and the versions, to quote with a measurement or a question."""

import importlib.util
import os
from typing import Any

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy.errors import how_to_install

PACKAGES = (
    "cpt-deploy",
    "numpy",
    "onnxruntime",
    "onnx",
    "torch",
    "torchvision",
    "fastapi",
    "uvicorn",
    "pillow",
    "typer",
)
VARIABLES = ("CPT_DATA_DIR", "CPT_KERNELS", "OMP_NUM_THREADS")


def info() -> None:
    """Show versions, the processor and its integer instructions, and the device that training would use."""
    import onnxruntime

    from cpt_deploy.validation import read_cpu, software_versions

    versions = dict.fromkeys(PACKAGES, "not installed") | software_versions(PACKAGES)
    cpu, device = read_cpu(), _training_device()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpu.cores
    providers = onnxruntime.get_available_providers()
    variables = {name: os.environ.get(name) for name in VARIABLES}
    out.fields("Versions", versions)
    out.fields(
        "Machine",
        {
            "processor": f"{cpu.model} ({cpu.architecture})",
            "cores": f"{usable} usable of {cpu.cores}",
            "integer and bfloat16 instructions": "unknown" if cpu.flags is None else ", ".join(cpu.flags) or "none",
            "8-bit products": _SATURATION[cpu.saturates],
            "training on": _describe(device),
            "quantized training": _kernels(device),
            "products of a Linear": _linear(device),
            "onnxruntime on": ", ".join(providers),
            **{name: value or "not set" for name, value in variables.items()},
        },
    )
    out.result(
        {
            "versions": versions,
            "cpu": cpu,
            "usable_cores": usable,
            "saturates": cpu.saturates,
            "training": device,
            "providers": providers,
            "environment": variables,
        }
    )


_SATURATION = {
    False: "added in 32 bits",
    True: "added in saturating 16 bits: onnxruntime is set to use slower exact kernels for native models",
    None: "unknown",
}


#: Rows, input and output features of the product that `info` times.
_LINEAR = (256, 512, 512)


def _training_device() -> dict[str, Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    from cpt_deploy.quantization.kernels import active
    from cpt_deploy.quantization.training_step.int8_products import has_int8_tensor_cores
    from cpt_deploy.quantization.training_step.linear_products import trial_of
    from cpt_deploy.quantization.training_step.products import choose_compute, int8_is_exact

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = active(device)
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "kernels": chosen.kernels.name,
        "no_native_kernels": chosen.reason or None,
        "compute": choose_compute("auto", native=chosen.native, device=device),
        "int8_products": has_int8_tensor_cores(torch.device("cuda")) if device == "cuda" else int8_is_exact(),
        "linear_seconds": dict(trial_of(*_LINEAR, active().kernels).seconds) if int8_is_exact() else None,
    }


def _describe(device: dict[str, Any] | None) -> str:
    if device is None:
        return f"nothing, torch is not installed: {how_to_install('train')}"
    return f"{device['device']} ({device['name'] or str(device['threads']) + ' threads'})"


def _kernels(device: dict[str, Any] | None) -> str:
    """Describe the kernels on the device that training would use, the reason for them, and the types of products."""
    if device is None:
        return "nothing"
    reason = f" ({device['no_native_kernels']})" if device["no_native_kernels"] else ""
    forward = "int8" if device["int8_products"] else "float32"
    if device["device"] == "cuda":
        forward += " (convolutions) and bfloat16 (Linear), exactly,"
    products = {
        "modules": "each module by itself",
        "bf16": f"products in {forward} forward, bfloat16 backward",
        "float32": f"products in {forward} forward, float32 backward",
    }
    place = "a GPU" if device["device"] == "cuda" else "a CPU"
    return f"on {place}: {device['kernels']} kernels{reason}; {products[device['compute']]}"


def _linear(device: dict[str, Any] | None) -> str:
    """Describe the types in which a CPU multiplies the integers of a Linear, timed on one shape."""
    if device is None:
        return "nothing"
    if device["linear_seconds"] is None:
        return "float32: sums of int8 products are not exact here"
    rows, inputs, outputs = _LINEAR
    ratio = device["linear_seconds"]["float32"] / device["linear_seconds"]["int8"]
    return (
        f"int8 or float32, bit-identical, chosen for each shape in a run by a trial; here int8 takes 1/{ratio:.1f} of "
        f"the time of float32 for {rows} rows, {inputs} to {outputs} features"
    )


COMMAND = Command(info, "cpt info", "cpt info --json  # to paste into a report")
