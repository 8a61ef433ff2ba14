"""What the workers of one server tell each other: load this model, unload that one.

Each order is a file with a number in a directory that they share; a worker answers with a file beside it. A worker that
starts later, because another died, reads what was ordered before. Nobody outside of the server sees the directory.
"""

import asyncio
import itertools
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import anyio.to_thread
import orjson

from cpt_deploy.errors import CptError
from cpt_serving.inference.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    ServingError,
)

ORDERS_VARIABLE = "CPT_SERVING_ORDERS_DIR"
"""Names the directory to the worker processes."""

_POLL_S = 0.1
_PATIENCE_S = 120.0
_ERRORS = {kind.__name__: kind for kind in (InvalidRequestError, ModelNotFoundError)}


@dataclass(frozen=True, slots=True)
class Order:
    """Something that every worker has to do.

    Args:
        action: What.
        name: Name of the model.
        version: One version; `None` stands for all.
    """

    action: Literal["load", "unload"]
    name: str
    version: str | None

    @property
    def what(self) -> str:
        """The model, for errors."""
        return f"{self.name!r:.100}" if self.version is None else f"version {self.version!r:.50} of {self.name!r:.100}"


class OrderBook:
    """The shared directory, as one worker uses it.

    Args:
        directory: The directory; it has to exist.
        worker: This worker's number among all processes, by default its process id.
    """

    def __init__(self, directory: Path, worker: int | None = None) -> None:
        self._directory = directory
        self._worker = os.getpid() if worker is None else worker
        self._done = 0
        (directory / f"worker-{self._worker}").touch()

    def so_far(self) -> list[Order]:
        """Return the orders of before this worker started, and answer them: it starts with what they amount to."""
        orders = self._read()
        for _ in orders:
            self._answer(None)
        return orders

    async def carry_out(self, order: Order) -> None:
        """Have every worker carry out an order; `follow` has to run in each of them.

        Raises:
            CptError: The first failure that a worker reports.
            DeadlineExceededError: If one does not answer.
        """
        number = await anyio.to_thread.run_sync(self._publish, order)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while self._missing(number):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"Expected all workers to {order.action} {order.name}, but one does not answer"
            ) from error
        for answer in sorted(self._directory.glob(f"{number}.*")):
            content = orjson.loads(answer.read_bytes())
            if content is not None:
                raise _ERRORS.get(content["kind"], CptError)(content["message"])

    async def follow(self, do: Callable[[Order], Awaitable[None]]) -> None:
        """Carry out orders as they come, in their order; returns never."""
        while True:
            for order in self._read():
                answer: dict[str, str] | None = None
                try:
                    await do(order)
                except ServingError as error:
                    answer = {"kind": type(error).__name__, "message": error.message}
                except Exception as error:
                    # The worker that waits for the answer has to hear of a bug too, and this loop has to go on.
                    answer = {"kind": "", "message": f"Internal error: {type(error).__name__}"}
                self._answer(answer)
            await asyncio.sleep(_POLL_S)

    def _publish(self, order: Order) -> int:
        draft = self._draft(asdict(order))
        for number in itertools.count(self._done + 1):
            try:
                # A link appears whole or not at all, and only one worker can get a number.
                (self._directory / str(number)).hardlink_to(draft)
            except FileExistsError:
                continue
            draft.unlink()
            break
        return number

    def _read(self) -> list[Order]:
        orders = []
        for number in itertools.count(self._done + 1):
            path = self._directory / str(number)
            if not path.exists():
                break
            orders.append(Order(**orjson.loads(path.read_bytes())))
        return orders

    def _answer(self, failure: Mapping[str, int | str] | None) -> None:
        """Answer the next order."""
        self._done += 1
        self._draft(failure).rename(self._directory / f"{self._done}.{self._worker}")

    def _draft(self, content: object) -> Path:
        draft = self._directory / f"draft-{uuid.uuid4().hex}"
        draft.write_bytes(orjson.dumps(content))
        return draft

    def _missing(self, number: int) -> bool:
        """Return whether a worker that lives has not answered."""
        workers = [int(file.name.removeprefix("worker-")) for file in self._directory.glob("worker-*")]
        return any(_lives(worker) and not (self._directory / f"{number}.{worker}").exists() for worker in workers)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
