"""Compile the kernels: one shared object for each instruction set. Standard library only; the build calls it too.

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
#: Where the objects are; another folder holds, say, those that a sanitizer watches.
OBJECTS = Path(os.environ.get("CPT_KERNEL_OBJECTS") or FOLDER / "compiled")
SOURCES = ("kernels.h", "elements.c", "channels.c", "parameters.c")

_FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden",
    # Only what cannot change a result: no error numbers, no traps, but neither contraction nor reordering.
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
)  # fmt: skip

#: By what `cpt_instruction_level` returns, the least first: the object's name and its flags.
_X86_LEVELS = {
    "generic": (),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
}


def levels() -> dict[str, tuple[str, ...]]:
    """Return the objects to be compiled on this kind of processor, the plainest first, with their flags."""
    return _X86_LEVELS if platform.machine().lower() in ("x86_64", "amd64") else {"generic": ()}


def object_path(level: str) -> Path:
    """Return the file of an object."""
    return OBJECTS / f"{level}.so"


def sources_digest() -> str:
    """Return a digest of the sources; each object says which it was compiled from."""
    content = b"".join((FOLDER / name).read_bytes() for name in SOURCES)
    return hashlib.sha256(content).hexdigest()[:16]


def compile_kernels() -> dict[str, str]:
    """Compile what can be compiled here.

    Returns:
        By object, an empty string, or why it could not be compiled.
    """
    OBJECTS.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    return {level: _compile(compiler, level, flags) for level, flags in levels().items()}


def _compile(compiler: list[str], level: str, flags: tuple[str, ...]) -> str:
    """Compile one object with OpenMP, or without where there is none; it replaces the old one only when it is whole."""
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
