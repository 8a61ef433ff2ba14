"""The table of models by name and version: their states, and finding the one that a request names."""

from collections.abc import Iterable
from dataclasses import dataclass

from cpt_serving.adapters import Adapter
from cpt_serving.inference.engine import Engine, EngineState
from cpt_serving.inference.errors import InvalidRequestError, ModelNotFoundError, not_ready
from cpt_serving.repository.model_directory import ModelLocation, version_order

Key = tuple[str, str]
"""Name and version."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of the repository's index.

    Args:
        name: Name of the model.
        version: Version of the model.
        state: State of the version.
        reason: Reason for the state; may be empty.
    """

    name: str
    version: str
    state: EngineState
    reason: str


@dataclass(slots=True)
class Entry:
    """The state of one version.

    Args:
        location: Location of the bundle, with the fingerprint of the files that were loaded or tried last.
        engine: Engine that answers, if the bundle could be opened and was not unloaded.
        reason: Reason for a missing engine or a failed update.
        wanted: False once it was unloaded by request.
        initial: Whether it was there when the server started; readiness needs all initial versions.
    """

    location: ModelLocation
    engine: Engine[Adapter] | None
    reason: str = ""
    wanted: bool = True
    initial: bool = False

    @property
    def ready(self) -> bool:
        """Whether it answers and is not being unloaded."""
        return self.engine is not None and self.engine.state is EngineState.READY


class ModelTable(dict[Key, Entry]):
    """The entries by name and version."""

    stopping = False
    """Whether the server is shutting down: then no model is ready."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, sorted."""
        return tuple(sorted({name for name, _ in self}))

    @property
    def first(self) -> Adapter | None:
        """The adapter of the first model that could be opened, or `None`."""
        return next((entry.engine.model for entry in self.values() if entry.engine is not None), None)

    @property
    def served(self) -> list[Engine[Adapter]]:
        """Engines that answer and are not being unloaded."""
        return [entry.engine for entry in self.values() if entry.engine is not None and entry.ready]

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model, oldest first; empty if there is no such model."""
        found = [version for model, version in self if model == name]
        # Fast path: this runs for each request, and most models have one version.
        return sorted(found, key=version_order) if len(found) > 1 else found

    def keys_of(self, name: str, version: str | None) -> list[Key]:
        """Return the keys of a model's version, or of all its versions."""
        return [key for key in self if key[0] == name and version in (None, key[1])]

    def find(self, name: str | None = None, version: str | None = None) -> Engine[Adapter]:
        """Return the engine of a model.

        Args:
            name: Name of the model; `None` stands for the only one that is served.
            version: Version of the model; `None` stands for the newest ready one, else the newest.

        Raises:
            InvalidRequestError: If there is no name and several models are served.
            ModelNotFoundError: If there is no such model, or it was unloaded.
            NotReadyError: If it could not be opened, or there is no model at all.
        """
        name = self._only_name() if name is None else name
        asked = None if version is None else self.get((name, version))
        if asked is not None and asked.wanted and asked.engine is not None:
            return asked.engine
        versions = self.versions(name)
        if not versions:
            raise ModelNotFoundError(f"Expected a served model ({_spelled(self.names)}), but got {name!r:.100}")
        if version is None:
            version = next((each for each in reversed(versions) if self[name, each].ready), versions[-1])
        elif version not in versions:
            raise ModelNotFoundError(
                f"Expected a served version of {name} ({_spelled(versions)}), but got {version!r:.100}"
            )
        entry = self[name, version]
        if not entry.wanted:
            raise ModelNotFoundError(f"Expected a loaded model, but version {version} of {name} was unloaded")
        if entry.engine is None:
            raise not_ready(f"version {version} of {name} is not loaded: {entry.reason}")
        return entry.engine

    def require_ready(self) -> None:
        """Raise a `NotReadyError` unless the server is ready for traffic.

        It is ready if at least one model is, and each initial one that is still there, and it is not shutting down.
        """
        if self.stopping:
            raise not_ready("the server is shutting down")
        if not self:
            raise not_ready("there is none yet")
        for name in sorted({name for (name, _), entry in self.items() if entry.initial and entry.wanted}):
            self.find(name).require_ready()
        if not any(entry.ready for entry in self.values()):
            raise not_ready("none is loaded")

    def index(self) -> list[ModelStatus]:
        """Return the state of every model and version, sorted by name and version."""
        return [_status(key, self[key]) for key in sorted(self, key=lambda key: (key[0], version_order(key[1])))]

    def _only_name(self) -> str:
        if not self:
            raise not_ready("there is none yet")
        if len(self.names) > 1:
            raise InvalidRequestError(
                f"Expected the name of a model, as several are served ({_spelled(self.names)}): "
                "/models/{name}/predict or ?model=name"
            )
        return self.names[0]


def _status(key: Key, entry: Entry) -> ModelStatus:
    if entry.engine is None:
        return ModelStatus(*key, EngineState.UNAVAILABLE, entry.reason)
    return ModelStatus(*key, entry.engine.state, entry.reason or entry.engine.reason)


def _spelled(names: Iterable[str]) -> str:
    return ", ".join(names)[:200] or "none"
