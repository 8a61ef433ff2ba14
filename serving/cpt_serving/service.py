"""What the routes stand on: the served models, the settings, the metrics and the statistics."""

from dataclasses import dataclass

from cpt_serving.certificates import Certificate
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.language_engine import LanguageEngine
from cpt_serving.inference.lifecycle import ModelEngine
from cpt_serving.oip.statistics import StatisticsRegistry
from cpt_serving.repository.model_repository import ModelRepository
from cpt_serving.settings import ServeSettings
from cpt_serving.shutdown import Shutdown
from cpt_serving.telemetry.metrics import Metrics
from cpt_serving.web.errors import bad_request


@dataclass(frozen=True)
class Service:
    """A running server apart from HTTP."""

    settings: ServeSettings
    repository: ModelRepository
    metrics: Metrics
    statistics: StatisticsRegistry
    shutdown: Shutdown
    certificate: Certificate | None

    def find_any(self, model: str | None, version: str | None = None) -> ModelEngine:
        """Return the engine of a model of any kind.

        Args:
            model: Its name; `None` is the only one that is served.
            version: Its version; `None` is the newest.

        Raises:
            RequestError: 400 if a name is needed, 404 if there is no such model, 503 if it could not be opened.
        """
        if model is None and version is None:
            return self.repository.default
        return self.repository.find(model or self.repository.default.bundle.name, version)

    def find(self, model: str | None, version: str | None = None) -> Engine:
        """Return the engine of an image classifier.

        Raises:
            RequestError: As `find_any` says, and 400 if the model is no classifier.
        """
        engine = self.find_any(model, version)
        if isinstance(engine, Engine):
            return engine
        raise bad_request(
            f"Expected an image classifier, but {engine.bundle.name} is a language model: "
            "/generate, /score and /v2/models/{name}/infer answer for it"
        )

    def find_language(self, model: str | None, version: str | None = None) -> LanguageEngine:
        """Return the engine of a language model.

        Raises:
            RequestError: As `find_any` says, and 400 if the model is no language model.
        """
        engine = self.find_any(model, version)
        if isinstance(engine, LanguageEngine):
            return engine
        raise bad_request(f"Expected a language model, but {engine.bundle.name} is an image classifier: /predict")
