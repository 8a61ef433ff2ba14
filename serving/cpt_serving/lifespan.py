"""What runs beside the requests of a server: loading, watching for new versions, and the end in order."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cpt_deploy.errors import CptError
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.service import Service
from cpt_serving.signals import announced_shutdown

logger = logging.getLogger(__name__)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Load the models, watch them if asked to, and fail readiness first when the server stops.

    The web server accepts connections only after this: with several workers on one port, a client must not be told that
    one of them, that has just started, is not ready.
    """
    repository, seconds = service.repository, service.settings.watch_s
    await repository.start()
    background = [asyncio.create_task(repository.follow_orders())]
    if seconds:
        background.append(asyncio.create_task(_watch(repository, seconds)))
    try:
        with announced_shutdown(repository.begin_shutdown, service.settings.drain_s):
            yield
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await repository.close()


async def _watch(repository: ModelRepository, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await repository.refresh()
        except CptError as error:
            # The directory may come back: what is loaded goes on.
            logger.error("the models could not be looked for: %s", error.message)
