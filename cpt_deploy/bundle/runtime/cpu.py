"""The processor and its instruction sets that decide which kernels multiply integers."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

INTEGER_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
"""The instruction sets that decide which kernel onnxruntime (and PyTorch) picks."""

VNNI_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
"""x86 instruction sets that add products of 8-bit integers in 32 bits."""

_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})


@dataclass(frozen=True)
class CpuInfo:
    """A processor.

    Args:
        model: Its name.
        architecture: "x86_64", "aarch64", ...
        cores: Logical cores of the machine.
        flags: Those of `INTEGER_FLAGS` that it has; `None` if the system does not list them.
    """

    model: str
    architecture: str
    cores: int
    flags: tuple[str, ...] | None

    @property
    def saturates(self) -> bool | None:
        """Whether 8-bit products are added in saturating 16 bits (x86 without VNNI); `None` if unknown."""
        if self.architecture.lower() not in _X86:
            return False
        return None if self.flags is None else VNNI_FLAGS.isdisjoint(self.flags)


def read_cpu(cpuinfo: Path = CPUINFO) -> CpuInfo:
    """Return this machine's processor.

    Args:
        cpuinfo: The file in which Linux describes it; on other systems it is absent and the flags are unknown.
    """
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    listed = fields.get("flags") or fields.get("features")
    flags = None if listed is None else tuple(flag for flag in INTEGER_FLAGS if flag in listed.split())
    model = fields.get("model name") or platform.processor() or "unknown"
    return CpuInfo(model, platform.machine(), os.cpu_count() or 1, flags)
