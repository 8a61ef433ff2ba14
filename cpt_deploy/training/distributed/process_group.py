"""The process group of a distributed run: the rank of this process, and collectives that also work in a single process.

torchrun assigns the ranks, in the environment variables RANK, WORLD_SIZE, LOCAL_RANK and the address of rank 0.
"""

import atexit
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
class ProcessGroup:
    """The process group as seen by this process.

    Args:
        rank: Rank of this process, from 0; rank 0, the main process, writes files and reports.
        count: Number of processes.
        local: Rank of this process on its machine, which selects its GPU.
        per_machine: Number of processes on its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    per_machine: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's share of the work of all processes."""
        return Share(self.rank, self.count)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values (n,) of all processes as (count, n); every process must call it."""
        if self.count == 1:
            return values[None]
        gathered = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(gathered, values)
        return torch.stack(gathered)

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; every process must call it."""
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
                raise ProcessLostError("Expected the main process to continue, but it failed")
            return message[0][0]  # type: ignore[no-any-return]
        try:
            message = [(make(),)]
        finally:
            dist.broadcast_object_list(message)
        return message[0][0]  # type: ignore[no-any-return]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Make all processes fail after the context if one fails inside it; the main process reports the first error.

        Raises:
            CptError: The error of this process, or on the main process the first error of another one.
            ProcessLostError: On the other processes.
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
        collected = self.collect(None if error is None else (error.message, error.hint, error.exit_code))
        failures = [(rank, entry) for rank, entry in enumerate(collected) if entry is not None]
        if not failures:
            return
        if self.is_main and error is not None:
            raise error
        failed, (message, hint, exit_code) = failures[0]
        lost = ProcessLostError(f"process {failed}: {message}", hint=hint)
        lost.exit_code = exit_code
        raise lost from error

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU, whatever the run is on


ALONE = ProcessGroup()


@contextmanager
def joined(device: str) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """Join the process group that torchrun started, once in a process; no-op for a single process.

    A group cannot be joined again after it was left: rank 0 still has the addresses of the first time. It is left when
    the process ends.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N" as in the recipe. With several processes each takes the GPU of
            its local rank.

    Yields:
        The process group and this process's device.

    Raises:
        UsageError: If the device does not exist here, or all processes would share one GPU.
    """
    process_group = launched()
    chosen = choose_device(device, process_group)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # CUDA graphs and events are of the current device
    if process_group.count == 1:
        yield process_group, chosen
        return
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    atexit.unregister(dist.destroy_process_group)  # not left after an error: torchrun ends the other processes
    yield process_group, chosen
    atexit.register(dist.destroy_process_group)


def launched() -> ProcessGroup:
    """Return the process group that torchrun's environment describes; without torchrun, a group of one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ProcessGroup()
    environment = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    rank, local = (int(value) for value in environment)
    return ProcessGroup(rank, count, local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed because another process ended; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def choose_device(name: str, process_group: ProcessGroup) -> torch.device:
    """Return the device that a recipe names; "auto" is a GPU if one is available.

    Raises:
        UsageError: If the device does not exist here, or all processes would share one GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if process_group.count > 1 and device.index is not None:
        raise UsageError(
            f"Expected train.device=auto, cpu or cuda with several processes, but got {name!r}",
            hint="each process takes the GPU of its local rank",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = process_group.local if device.index is None else device.index
    if index >= count:
        raise UsageError(
            f"Expected train.device to be an available device, but got 'cuda:{index}' with {count} CUDA devices",
            hint="train.device=auto takes a GPU if one is available; start at most one process per GPU",
        )
    return torch.device("cuda", index)
