"""What the routes stand on: the served models, the settings and the metrics."""

from dataclasses import dataclass

from cpt_deploy.bundle import Bundle
from cpt_serving.engine import Engine
from cpt_serving.errors import RequestError
from cpt_serving.metrics import Metrics
from cpt_serving.settings import ServeSettings


@dataclass(frozen=True)
class Service:
    """A running server apart from HTTP."""

    settings: ServeSettings
    engine: Engine
    metrics: Metrics

    @property
    def bundle(self) -> Bundle:
        """The bundle that `/predict` asks."""
        return self.engine.bundle

    def find(self, model: str, version: str | None = None) -> Engine:
        """Return the engine of a model.

        Args:
            model: Its name.
            version: Its version; `None` is the newest.

        Raises:
            RequestError: 404, if it is not served.
        """
        if model != self.bundle.name:
            raise RequestError(404, f"Expected a served model ({self.bundle.name}), but got {model!r:.100}")
        if version is not None and version != self.bundle.version:
            raise RequestError(
                404, f"Expected a served version of {model} ({self.bundle.version}), but got {version!r:.100}"
            )
        return self.engine
