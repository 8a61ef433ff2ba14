"""What the routes stand on: the served models, the settings, the metrics and the statistics."""

from dataclasses import dataclass

from cpt_serving.inference.engine import Engine
from cpt_serving.oip.statistics import StatisticsRegistry
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.metrics import Metrics


@dataclass(frozen=True)
class Service:
    """A running server apart from HTTP."""

    settings: ServeSettings
    repository: ModelRepository
    metrics: Metrics
    statistics: StatisticsRegistry

    def find(self, model: str | None, version: str | None = None) -> Engine:
        """Return the engine of a model.

        Args:
            model: Its name; `None` is the only one that is served.
            version: Its version; `None` is the newest.

        Raises:
            RequestError: 400 if a name is needed, 404 if there is no such model, 503 if it could not be opened.
        """
        if model is None and version is None:
            return self.repository.default
        return self.repository.find(model or self.repository.default.bundle.name, version)
