"""The service behind the routes of HTTP and gRPC: the served models, the settings and the metrics."""

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
    """A running server, independent of HTTP and gRPC."""

    settings: ServeSettings
    repository: ModelRepository
    metrics: Metrics
    shutdown: Shutdown
    certificate: Certificate | None
    memory: BodyBudget
    """Memory for the bodies and messages of all requests in progress."""

    def find(self, model: str | None, version: str | None = None) -> Engine[Adapter]:
        """Return the engine of a model.

        Args:
            model: Name of the model; `None` stands for the only one that is served.
            version: Version of the model; `None` stands for the newest.

        Raises:
            InvalidRequestError: If there is no name and several models are served.
            ModelNotFoundError: If there is no such model.
            NotReadyError: If it could not be opened.
        """
        return self.repository.models.find(model, version)

    def find_predicting(self, model: str | None, version: str | None = None) -> Engine[Predicts]:
        """Return the engine of a model that answers `/predict`.

        Raises:
            ServingError: Like `find`; an InvalidRequestError if the model does not answer `/predict`.
        """
        return _able(self.find(model, version), Predicts)  # type: ignore[type-abstract]

    def find_generating(self, model: str | None, version: str | None = None) -> Engine[Generates]:
        """Return the engine of a model that answers `/generate` and `/score`.

        Raises:
            ServingError: Like `find`; an InvalidRequestError if the model does not answer them.
        """
        return _able(self.find(model, version), Generates)  # type: ignore[type-abstract]


def _able(engine: Engine[Adapter], able: type[A]) -> Engine[A]:
    """Return the engine, typed by an ability of its model, or raise if the model lacks it."""
    if not isinstance(engine.model, able):
        raise InvalidRequestError(
            f"Expected a model that {able.ability}, but {engine.bundle.name} {engine.model.ability} "
            "(and /v2/models/{name}/infer)"
        )
    return cast("Engine[A]", engine)
