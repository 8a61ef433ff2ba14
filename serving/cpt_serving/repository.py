"""The models of a server: found by name and version, loaded and unloaded while requests come."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread
from anyio import CapacityLimiter

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError, CptError
from cpt_serving.compute import ComputeThreads
from cpt_serving.engine import Engine, EngineState, unavailable
from cpt_serving.errors import RequestError, bad_request
from cpt_serving.model_directory import Fingerprint, ModelLocation, find_models, version_order
from cpt_serving.observers import ObserverFactory, Observers
from cpt_serving.settings import ServeSettings, available_cores

logger = logging.getLogger(__name__)

Key = tuple[str, str]

_DRAIN_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of the repository's index.

    Args:
        name: Name of the model.
        version: Its version.
        state: Where it is in its life.
        reason: Why, where there is something to say.
    """

    name: str
    version: str
    state: EngineState
    reason: str


@dataclass(slots=True)
class _Entry:
    """What is known of one version: its place, and its engine or why there is none."""

    location: ModelLocation
    fingerprint: Fingerprint
    engine: Engine | None
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.engine is not None and self.engine.state is EngineState.READY


class ModelRepository:
    """The bundles at a path. Names and versions of requests are looked up among those that were found there.

    Args:
        settings: The path, and how models are run.
        observe: What makes the observers of each model version.

    Raises:
        BundleError: If there is nothing at the path, or it is one bundle that cannot be opened.
    """

    def __init__(self, settings: ServeSettings, observe: Sequence[ObserverFactory] = ()) -> None:
        self._settings = settings
        self._observe = tuple(observe)
        self._threads = ComputeThreads(settings.inferences_at_once)
        self._decoders = CapacityLimiter(available_cores())
        self._entries: dict[Key, _Entry] = {}
        self._unwanted: set[Key] = set()
        self._changing = asyncio.Lock()
        self._stopping = False
        locations = find_models(settings.bundle)
        self._single = len(locations) == 1 and locations[0].name is None
        for location in locations:
            self._add(location)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, sorted."""
        return tuple(sorted({name for name, _ in self._entries}))

    @property
    def default(self) -> Engine:
        """The engine that is asked when a request names no model: the newest version, if there is one model only.

        Raises:
            RequestError: 400 if several models are served, 503 if none is.
        """
        names = self.names
        if not names:
            raise unavailable("there is none yet")
        if len(names) > 1:
            raise bad_request(
                f"Expected the name of a model, as several are served ({', '.join(names):.200}): "
                "/models/{name}/predict or ?model=name"
            )
        return self.find(names[0])

    @property
    def example(self) -> Bundle | None:
        """A bundle from which the documentation's examples can be made."""
        return next((entry.engine.bundle for entry in self._entries.values() if entry.engine is not None), None)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model, oldest first; empty if there is no such model."""
        return sorted((version for model, version in self._entries if model == name), key=version_order)

    def find(self, name: str, version: str | None = None) -> Engine:
        """Return the engine of a model.

        Args:
            name: Its name.
            version: Its version; `None` is the newest that is ready, else the newest.

        Raises:
            RequestError: 404 if there is no such model or it was unloaded, 503 if it could not be opened.
        """
        versions = self.versions(name)
        if not versions:
            raise RequestError(404, f"Expected a served model ({self._list(self.names)}), but got {name!r:.100}")
        if version is None:
            version = next((each for each in reversed(versions) if self._entries[name, each].ready), versions[-1])
        elif version not in versions:
            raise RequestError(
                404, f"Expected a served version of {name} ({self._list(versions)}), but got {version!r:.100}"
            )
        if (name, version) in self._unwanted:
            raise RequestError(404, f"Expected a loaded model, but version {version} of {name} was unloaded")
        entry = self._entries[name, version]
        if entry.engine is None:
            raise unavailable(f"version {version} of {name} is not loaded: {entry.reason}")
        return entry.engine

    def index(self) -> list[ModelStatus]:
        """Return the state of every model and version, sorted by name and version."""
        keys = sorted(self._entries, key=lambda key: (key[0], version_order(key[1])))
        return [self._status(key) for key in keys]

    def require_ready(self) -> None:
        """Raise a 503 unless every model that is wanted has a version that is ready, and the server is not stopping."""
        if self._stopping:
            raise unavailable("the server is shutting down")
        wanted = {name for name, version in self._entries if (name, version) not in self._unwanted}
        if not wanted:
            raise unavailable("no model is loaded")
        for name in sorted(wanted):
            self.find(name).require_ready()

    def begin_shutdown(self) -> None:
        """Fail readiness from now on; requests are still answered."""
        self._stopping = True
        for entry in self._entries.values():
            if entry.engine is not None:
                entry.engine.retire("the server is shutting down")

    def load_now(self) -> None:
        """Load the models before there is an event loop.

        Raises:
            CptError: If none of them can be loaded; in a directory of several, others may fail and are logged.
        """
        failures: list[CptError] = []
        for entry in self._entries.values():
            if entry.engine is not None:
                try:
                    entry.engine.load_now()
                except CptError as error:
                    entry.engine.fail(error.message)
                    failures.append(error)
        if self._entries and not any(entry.ready for entry in self._entries.values()):
            if failures:
                raise failures[0]
            raise BundleError(next(iter(self._entries.values())).reason)

    async def start(self) -> None:
        """Load the models that were found."""
        async with self._changing:
            for entry in list(self._entries.values()):
                if entry.engine is not None and entry.engine.state is EngineState.LOADING:
                    await entry.engine.load()

    async def close(self) -> None:
        """End the compute threads once they have done what they were given."""
        await anyio.to_thread.run_sync(self._threads.close)

    async def load(self, name: str, version: str | None = None) -> None:
        """Load a model, or load it again if its files have changed; the versions that serve go on until then.

        Args:
            name: Its name.
            version: One version; `None` stands for all of them.

        Raises:
            RequestError: 404 if there is no such model, 400 if it cannot be loaded.
        """
        async with self._changing:
            found = await self._look()
            keys = [key for key in found if key[0] == name and version in (None, key[1])]
            if not keys:
                raise RequestError(404, f"Expected a model in the repository, but got {self._spell(name, version)}")
            failures = []
            for key in keys:
                self._unwanted.discard(key)
                reason = await self._bring_up(key, found[key])
                if reason:
                    failures.append(f"version {key[1]}: {reason}")
        if failures:
            raise bad_request(f"Expected {name} to load, but got: {'; '.join(failures)}")

    async def unload(self, name: str, version: str | None = None) -> None:
        """Take a model out of service; returns once its requests are answered. Watching does not bring it back.

        Args:
            name: Its name.
            version: One version; `None` stands for all of them.

        Raises:
            RequestError: 404 if there is no such model.
        """
        async with self._changing:
            keys = [key for key in self._entries if key[0] == name and version in (None, key[1])]
            if not keys:
                raise RequestError(404, f"Expected a served model, but got {self._spell(name, version)}")
            for key in keys:
                self._unwanted.add(key)
                await self._take_down(key, "unloaded by request")

    async def refresh(self) -> None:
        """Look at the path again: load what is new or changed, and drop what is gone."""
        async with self._changing:
            found = await self._look()
            for key, location in found.items():
                entry = self._entries.get(key)
                if key not in self._unwanted and (entry is None or entry.fingerprint != location.fingerprint):
                    await self._bring_up(key, location)
            for key in [key for key in self._entries if key not in found]:
                await self._take_down(key, "its directory is gone")
                del self._entries[key]
                self._unwanted.discard(key)

    async def _look(self) -> dict[Key, ModelLocation]:
        return await anyio.to_thread.run_sync(self._look_now)

    def _look_now(self) -> dict[Key, ModelLocation]:
        """Return what the path holds now, by name and version."""
        locations = find_models(self._settings.bundle)
        return {self._key(location): location for location in locations}

    def _key(self, location: ModelLocation) -> Key:
        """Return how clients address what is at a place; what has no name of its own is asked for it."""
        if location.name is not None and location.version is not None:
            return location.name, location.version
        known = next((key for key, entry in self._entries.items() if entry.location.path == location.path), None)
        if known is not None:
            return known
        try:
            bundle = Bundle.open(location.path, verify=False)
        except BundleError:
            return location.name or location.path.name, "1"
        return location.name or bundle.name, bundle.version

    def _add(self, location: ModelLocation) -> None:
        try:
            engine = self._open(location)
        except BundleError as error:
            if self._single:
                raise
            logger.error("%s", error.message)
            self._entries[self._key(location)] = _Entry(location, location.fingerprint, None, error.message)
        else:
            key = (engine.bundle.name, engine.bundle.version)
            self._entries[key] = _Entry(location, location.fingerprint, engine)

    def _open(self, location: ModelLocation) -> Engine:
        bundle = location.open()
        observer = Observers([make(bundle) for make in self._observe])
        return Engine(bundle, self._settings, self._threads, self._decoders, observer)

    async def _bring_up(self, key: Key, location: ModelLocation) -> str:
        """Load a version beside the one that serves, and let it take over; return why not, if it could not."""
        current = self._entries.get(key)
        if current is not None and current.ready and current.fingerprint == location.fingerprint:
            return ""
        try:
            engine = await anyio.to_thread.run_sync(self._open, location)
        except CptError as error:
            return self._keep(key, location, error.message)
        if current is None or current.engine is None:
            self._entries[key] = _Entry(location, location.fingerprint, engine)
        await engine.load()
        if engine.state is not EngineState.READY:
            return self._keep(key, location, engine.reason)
        self._entries[key] = _Entry(location, location.fingerprint, engine)
        logger.info("serving %s version %s (sha256 %.12s…)", *key, engine.bundle.sha256)
        if current is not None and current.engine is not None:
            await _drain(current.engine, "replaced by another file")
        return ""

    def _keep(self, key: Key, location: ModelLocation, reason: str) -> str:
        """Note that an update failed; what serves goes on."""
        entry = self._entries.setdefault(key, _Entry(location, location.fingerprint, None))
        entry.fingerprint = location.fingerprint
        entry.reason = reason
        logger.error("%s version %s was not loaded: %s", *key, reason)
        return reason

    async def _take_down(self, key: Key, reason: str) -> None:
        entry = self._entries[key]
        if entry.engine is not None:
            await _drain(entry.engine, reason)
            entry.engine.state = EngineState.UNAVAILABLE
        entry.reason = reason

    def _status(self, key: Key) -> ModelStatus:
        entry = self._entries[key]
        state = EngineState.UNAVAILABLE if entry.engine is None else entry.engine.state
        reason = entry.reason or (entry.engine.reason if entry.engine is not None else "")
        return ModelStatus(*key, state, reason)

    @staticmethod
    def _list(names: Sequence[str]) -> str:
        return ", ".join(names)[:200] or "none"

    @staticmethod
    def _spell(name: str, version: str | None) -> str:
        return f"{name!r:.100}" if version is None else f"version {version!r:.50} of {name!r:.100}"


async def _drain(engine: Engine, reason: str) -> None:
    """Wait until an engine that nobody finds any more has answered those that found it."""
    engine.retire(reason)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while engine.pending:
                await asyncio.sleep(_DRAIN_POLL_S)
