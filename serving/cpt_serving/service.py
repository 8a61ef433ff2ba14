"""The service behind the routes of HTTP and gRPC: the served models, the settings and the metrics."""

from dataclasses import dataclass
from typing import cast

from cpt_serving.adapters import Adapter
from cpt_serving.certificates import Certificate
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.errors import InvalidRequestError
from cpt_serving.inference.model import TextModel
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.settings import ServeSettings
from cpt_serving.shutdown import Shutdown
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.web.bodies import BodyBudget


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

    def find_generating(self, model: str | None, version: str | None = None) -> Engine[TextModel]:
        """Return the engine of a model that answers `/generate` and `/score`.

        Raises:
            ServingError: Like `find`; an InvalidRequestError if the model does not answer them.
        """
        engine = self.find(model, version)
        if not isinstance(engine.model, TextModel):
            raise InvalidRequestError(
                f"Expected a model that answers /generate and /score, but {engine.bundle.name} answers /predict "
                "(and /v2/models/{name}/infer)"
            )
        return cast("Engine[TextModel]", engine)
