"""What the routes stand on: the served models, the settings and the metrics."""

from dataclasses import dataclass
from typing import TypeVar, cast

from cpt_serving.adapters import Adapter, Generates, Predicts
from cpt_serving.certificates import Certificate
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.errors import InvalidRequestError
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.settings import ServeSettings
from cpt_serving.shutdown import Shutdown
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.web.bodies import BodyBudget

A = TypeVar("A", bound=Adapter)


@dataclass(frozen=True)
class Service:
    """A running server apart from HTTP."""

    settings: ServeSettings
    repository: ModelRepository
    metrics: Metrics
    shutdown: Shutdown
    certificate: Certificate | None
    memory: BodyBudget
    """For the bodies and messages of all requests under way."""

    def find(self, model: str | None, version: str | None = None) -> Engine[Adapter]:
        """Return the engine of a model.

        Args:
            model: Its name; `None` is the only one that is served.
            version: Its version; `None` is the newest.

        Raises:
            InvalidRequestError: If a name is needed.
            ModelNotFoundError: If there is no such model.
            NotReadyError: If it could not be opened.
        """
        return self.repository.models.find(model, version)

    def find_predicting(self, model: str | None, version: str | None = None) -> Engine[Predicts]:
        """Return the engine of a model that answers `/predict`.

        Raises:
            ServingError: As `find` says, and an InvalidRequestError if the model cannot.
        """
        return _able(self.find(model, version), Predicts)  # type: ignore[type-abstract]

    def find_generating(self, model: str | None, version: str | None = None) -> Engine[Generates]:
        """Return the engine of a model that answers `/generate` and `/score`.

        Raises:
            ServingError: As `find` says, and an InvalidRequestError if the model cannot.
        """
        return _able(self.find(model, version), Generates)  # type: ignore[type-abstract]


def _able(engine: Engine[Adapter], able: type[A]) -> Engine[A]:
    """Return an engine as that of a model with an ability."""
    if not isinstance(engine.model, able):
        raise InvalidRequestError(
            f"Expected a model that {able.ability}, but {engine.bundle.name} {engine.model.ability} "
            "(and /v2/models/{name}/infer)"
        )
    return cast("Engine[A]", engine)
