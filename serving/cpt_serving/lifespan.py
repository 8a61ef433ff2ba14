"""The lifespan of a server: loading the models, watching for new versions, and an orderly shutdown."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cpt_serving.background import Background
from cpt_serving.service import Service
from cpt_serving.shutdown import finished
from cpt_serving.telemetry.metrics import WATCH_CERTIFICATE, WATCH_MODELS

_CLOSE_S = 1.0
"""Time after the shutdown deadline in which resources are released."""


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Load the models and watch them; on exit, let requests in progress finish until the deadline.

    The web server accepts connections only after the context is entered.
    """
    repository = service.repository
    await repository.start()
    background = Background(service.metrics.background_restarted)
    background.start(WATCH_MODELS, repository.watch)
    if service.certificate is not None:
        background.start(WATCH_CERTIFICATE, service.certificate.watch)
    try:
        yield
    finally:
        service.shutdown.stop()
        await background.close()
        await finished(repository.close, service.shutdown.remaining_s + _CLOSE_S)
