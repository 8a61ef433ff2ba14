"""Random number generators of a run: seeded from the recipe, saved in checkpoints, restored after the run."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic
from torch import Tensor


@contextmanager
def seeded(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed torch, NumPy and Python inside the context, and restore their states and the flag after it.

    Args:
        seed: The recipe's seed.
        deterministic: Whether torch uses deterministic algorithms; operations without one warn.
    """
    tensors, state = random_state()
    mode = torch.get_deterministic_debug_mode()
    debugging: Any = torch.utils.deterministic
    benchmark, fill = torch.backends.cudnn.benchmark, debugging.fill_uninitialized_memory
    if deterministic:
        # cuBLAS reads this at its first use in a process, and is deterministic only with such a workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # Same effect as `use_deterministic_algorithms`, which would also load all of torch's compiler.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    torch.backends.cudnn.benchmark = not deterministic
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs a pass over all memory
    try:
        yield
    finally:
        restore_random_state(tensors, state)
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        debugging.fill_uninitialized_memory = fill


def seed_torch(*parts: int) -> None:
    """Seed torch from several integers, such as the run's seed, a step and the number of a process."""
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all generators: tensors by name, and the rest as JSON types."""
    numpy_state: Any = np.random.get_state(legacy=False)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    numpy_rest = [int(numpy_state["state"]["pos"]), int(numpy_state["has_gauss"]), float(numpy_state["gauss"])]
    return tensors, {"python": [version, list(internal), gauss], "numpy": numpy_rest}


def restore_random_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Set all generators to states that `random_state` returned; missing GPUs are skipped."""
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)
    position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, python_gauss = state["python"]
    random.setstate((version, tuple(internal), python_gauss))
