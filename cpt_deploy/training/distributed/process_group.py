"""The processes of a distributed run: who this one is, and what they tell each other. One alone needs no group.

Who is who is torchrun's business: RANK, WORLD_SIZE, LOCAL_RANK and the address of the first process are its variables.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cpt_deploy.data import Share
from cpt_deploy.errors import CptError, ProcessLostError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Args:
        rank: Its number, from 0; 0 writes files and speaks.
        count: How many there are.
        local: Its number on its machine, which decides its GPU.
        per_machine: How many there are on its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    per_machine: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of what all have together."""
        return Share(self.rank, self.count)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values (n,) of all processes as (count, n); every process must call it."""
        if self.count == 1:
            return values[None]
        gathered = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(gathered, values)
        return torch.stack(gathered)

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes in their order; every process must call it."""
        if self.count == 1:
            return [value]
        collected: list[Any] = [None] * self.count
        dist.all_gather_object(collected, value)
        return collected

    def from_main(self, make: Callable[[], T]) -> T:
        """Call a function on the main process only and return its result on all.

        Raises:
            ProcessLostError: On the others, if the function raised on the main process.
        """
        if self.count == 1:
            return make()
        message: list[Any] = [None]
        if not self.is_main:
            dist.broadcast_object_list(message)
            if message[0] is None:
                raise ProcessLostError("Expected the first process to go on, but it failed")
            return message[0][0]  # type: ignore[no-any-return]
        try:
            message = [(make(),)]
        finally:
            dist.broadcast_object_list(message)
        return message[0][0]  # type: ignore[no-any-return]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """If one process fails inside the context, all fail after it, and the main process tells of the first one.

        Raises:
            CptError: What this process raised, or on the main process what another one did.
            ProcessLostError: On the others.
        """
        error: CptError | None = None
        try:
            yield
        except CptError as caught:
            if self.count == 1:
                raise
            error = caught
        if self.count == 1:
            return
        told = self.collect(None if error is None else (error.message, error.hint, error.exit_code))
        failures = [(rank, entry) for rank, entry in enumerate(told) if entry is not None]
        if not failures:
            return
        if self.is_main and error is not None:
            raise error
        failed, (message, hint, exit_code) = failures[0]
        lost = ProcessLostError(f"process {failed}: {message}", hint=hint)
        lost.exit_code = exit_code
        raise lost from error

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU, whatever the run is on


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, for the time of the context; alone, there is nothing to join.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N" as a recipe names it. With several processes each takes the GPU of
            its number on its machine.

    Yields:
        This process among the others, and its device.

    Raises:
        UsageError: If the device does not exist here, or all processes would share one GPU.
    """
    ranks = launched()
    chosen = choose_device(device, ranks)
    if ranks.count == 1:
        yield ranks, chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    # A group whose processes failed is not waited for: the process ends, and torchrun ends the others.
    yield ranks, chosen
    dist.destroy_process_group()


def launched() -> Ranks:
    """Return this process as torchrun's environment describes it; the only one without torchrun."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    environment = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    rank, local = (int(value) for value in environment)
    return Ranks(rank, count, local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed since another process is gone; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """Return the device that a recipe names; "auto" is a GPU where there is one.

    Raises:
        UsageError: If the device does not exist here, or all processes would share one GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if ranks.count > 1 and device.index is not None:
        raise UsageError(
            f"Expected train.device=auto, cpu or cuda with several processes, but got {name!r}",
            hint="each process takes the GPU of its number on its machine",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = ranks.local if device.index is None else device.index
    if index >= count:
        raise UsageError(
            f"Expected train.device to be a device that is there, but got 'cuda:{index}' with {count} CUDA devices",
            hint="train.device=auto takes a GPU where there is one; start at most one process a GPU",
        )
    return torch.device("cuda", index)
