"""What runs beside the requests of a server: loading, watching for new versions, and the end in order."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cpt_deploy.errors import CptError
from cpt_serving.repository import ModelRepository
from cpt_serving.service import Service
from cpt_serving.signals import announced_shutdown

logger = logging.getLogger(__name__)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Load the models while the server starts, watch them if asked to, and fail readiness first when it stops."""
    background = [asyncio.create_task(service.repository.start())]
    if service.settings.watch_s:
        background.append(asyncio.create_task(_watch(service.repository, service.settings.watch_s)))
    try:
        with announced_shutdown(service.repository.begin_shutdown, service.settings.drain_s):
            yield
    finally:
        await background[0]
        for task in background[1:]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await service.repository.close()


async def _watch(repository: ModelRepository, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await repository.refresh()
        except CptError as error:
            # The directory may come back: what is loaded goes on.
            logger.error("the models could not be looked for: %s", error.message)
