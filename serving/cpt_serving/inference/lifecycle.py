"""Where a model version of any kind is in its life: being loaded, ready, on its way out."""

import enum
import logging
from abc import ABC, abstractmethod

import anyio.to_thread

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.language import LanguageBundle
from cpt_deploy.errors import CptError
from cpt_serving.inference.errors import NotReadyError, not_ready

logger = logging.getLogger(__name__)


class EngineState(enum.StrEnum):
    """Where a model version is in its life, in the words of the repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MEANING = {
    EngineState.LOADING: "the model is being loaded",
    EngineState.READY: "ready",
    EngineState.UNLOADING: "the model is being unloaded",
    EngineState.UNAVAILABLE: "the model is not loaded",
}


class ModelEngine(ABC):
    """One model version behind the routes.

    An engine that is no longer in the repository still answers the requests that found it there: it lives, model and
    all, as long as one of them holds it.

    Args:
        bundle: The bundle that it serves.
    """

    def __init__(self, bundle: Bundle | LanguageBundle) -> None:
        self.bundle = bundle
        self.state = EngineState.LOADING
        self.reason = ""

    @property
    def status(self) -> str:
        """Why the engine is in its state, in words."""
        return f"{_MEANING[self.state]}: {self.reason}" if self.reason else _MEANING[self.state]

    @property
    @abstractmethod
    def pending(self) -> int:
        """Requests that wait or are being computed."""

    @abstractmethod
    def load_now(self) -> None:
        """Load the model; takes as long as that takes.

        Raises:
            CptError: If it cannot be loaded.
        """

    def loaded(self) -> None:
        """Note that the model is there."""
        if self.state is EngineState.LOADING:
            self.state = EngineState.READY

    async def load(self) -> None:
        """Load the model beside the event loop; whether that succeeded is `state` afterwards."""
        try:
            await anyio.to_thread.run_sync(self.load_now)
        except CptError as error:
            self.fail(error.message)
        except Exception as error:
            logger.exception("loading %s failed", self.bundle.path)
            self.fail(f"{type(error).__name__}")

    def fail(self, reason: str) -> None:
        """Note why the model could not be loaded."""
        self.state = EngineState.UNAVAILABLE
        self.reason = f"it could not be loaded: {reason}"
        logger.error("%s version %s: %s", self.bundle.name, self.bundle.version, self.status)

    def retire(self, reason: str) -> None:
        """Fail readiness from now on; requests are still answered."""
        self.state = EngineState.UNLOADING
        self.reason = reason

    def require_ready(self) -> None:
        """Raise a 503 unless new traffic should come here."""
        if self.state is not EngineState.READY:
            raise unavailable(self.status)


def unavailable(reason: str) -> NotReadyError:
    """Return the error of a model that cannot be asked now."""
    return not_ready(reason)
