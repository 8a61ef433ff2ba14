"""Compile the C kernels, one shared object per instruction set; the package build calls it. Standard library only.

python -m cpt_deploy.quantization.kernels.compile
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
#: Folder of the objects; the variable selects another one, such as that of objects with sanitizers.
OBJECTS = Path(os.environ.get("CPT_KERNEL_OBJECTS") or FOLDER / "compiled")
SOURCES = ("kernels.h", "elements.c", "channels.c", "parameters.c")

_FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden",
    # Only optimizations that cannot change a result: no errno, no traps, but neither contraction nor reordering.
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
)  # fmt: skip

#: Name and flags of each object, in the order of the values that `cpt_instruction_level` returns.
_X86_LEVELS = {
    "generic": (),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
}


def levels() -> dict[str, tuple[str, ...]]:
    """Return the objects for this processor architecture with their flags, the least specialized first."""
    return _X86_LEVELS if platform.machine().lower() in ("x86_64", "amd64") else {"generic": ()}


def object_path(level: str) -> Path:
    """Return the path of an object."""
    return OBJECTS / f"{level}.so"


def sources_digest() -> str:
    """Return the digest of the sources; each object contains the digest of those that it was compiled from."""
    content = b"".join((FOLDER / name).read_bytes() for name in SOURCES)
    return hashlib.sha256(content).hexdigest()[:16]


def compile_kernels() -> dict[str, str]:
    """Compile all objects for this processor architecture.

    Returns:
        For each object, an empty string, or the reason why it could not be compiled.
    """
    OBJECTS.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    return {level: _compile(compiler, level, flags) for level, flags in levels().items()}


def _compile(compiler: list[str], level: str, flags: tuple[str, ...]) -> str:
    """Compile one object, with OpenMP if available; it replaces the old one only after success."""
    path = object_path(level)
    partial = path.with_suffix(f".{os.getpid()}")
    sources = [str(FOLDER / name) for name in SOURCES if name.endswith(".c")]
    failure = ""
    for openmp in (("-fopenmp",), ()):
        command = [*compiler, *_FLAGS, *flags, *openmp, f'-DCPT_SOURCES="{sources_digest()}"', "-o", str(partial)]
        try:
            done = subprocess.run([*command, *sources, "-lm"], capture_output=True, text=True, check=False)
        except OSError as error:
            return f"{compiler[0]}: {error.strerror}"
        if done.returncode == 0:
            partial.replace(path)
            return ""
        failure = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit status {done.returncode}"
    partial.unlink(missing_ok=True)
    return failure


if __name__ == "__main__":
    failures = {level: why for level, why in compile_kernels().items() if why}
    sys.exit("\n".join(f"{level}: {why}" for level, why in failures.items()) or 0)
