"""What runs beside the requests of a server: loading, watching for new versions, and the end in order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cpt_serving.background import Background
from cpt_serving.service import Service
from cpt_serving.shutdown import finished
from cpt_serving.telemetry.metrics import WATCH_CERTIFICATE, WATCH_MODELS

_CLOSE_S = 1.0
"""What the end has beyond the deadline, to give back what it holds."""


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Load the models and watch them; at the end, finish what is under way until the deadline.

    The web server accepts connections only after this.
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
