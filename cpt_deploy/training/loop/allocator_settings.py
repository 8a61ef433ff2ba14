"""Allocator settings for training: freed memory stays with the process instead of returning to the system.

Each step allocates and frees the same large tensors. By default glibc returns blocks of 32 MB and more, and the free
top of the heap, to the system at once, and their pages are cleared and faulted in again at the next step. That takes
a good part of a step on text, whose logits are that large (measured by `benchmarks/freed_memory.py`).
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), numbered as in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MAX_INT = 2**31 - 1
_MIB = 2**20
#: glibc's max number of mapped blocks, and the upper limits of its dynamic thresholds on 64-bit systems.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * _MIB, _TRIM_THRESHOLD: 64 * _MIB}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process inside the context; on exit it returns to the system.

    Does nothing if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _MAX_INT)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
