"""Arrays in memory that processes share, however they are started."""

import math
import mmap
import os
import sys
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np

from cpt_deploy.data.images import Pixels


class SharedArray:
    """An array of bytes, at first zeros, which a process that is started with it shares: it is passed as an open file.

    Args:
        shape: Its shape. Memory is allocated as it fills.
        descriptor: The open file of an array of another process; by default a new one without a name.
    """

    def __init__(self, shape: tuple[int, ...], descriptor: int | None = None) -> None:
        count = math.prod(shape)
        self._descriptor = _unnamed_file(count) if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)
        self.values: Pixels = np.frombuffer(mmap.mmap(self._descriptor, count), np.uint8).reshape(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.values.shape, reduction.DupFd(self._descriptor))


def _opened(shape: tuple[int, ...], handle: Any) -> SharedArray:
    return SharedArray(shape, handle.detach())


def _unnamed_file(count: int) -> int:
    """Return the descriptor of a file of zeros; in memory on Linux, where that of `/dev/shm` is short in containers."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("cpt-deploy")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, count)
    return descriptor
