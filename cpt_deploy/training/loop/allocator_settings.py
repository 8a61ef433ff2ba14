"""Freed memory stays with the process while it trains, instead of going back to the system at every step.

A step allocates and frees the same large tensors again and again. glibc hands blocks of 32 MB and more, and a free end
of the heap, back to the system at once, which clears the pages and faults them in again at the next step. That takes
a good part of a language model's step, whose logits are that large (measured by `benchmarks/freed_memory.py`).
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), as malloc.h numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_GREATEST_INT = 2**31 - 1
_MIB = 2**20
#: glibc's limit of mapped blocks, and where its own adaptation of the thresholds ends on 64-bit systems.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 64 * _MIB}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the process keep what it frees; afterwards it goes back to the system.

    Nothing happens where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _GREATEST_INT)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
