"""The repository of a server's models: finds, loads, replaces and unloads them while requests are answered."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

import anyio.to_thread

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError, CptError
from cpt_serving.adapters import Adapter, adapter_of
from cpt_serving.cores import available_cores
from cpt_serving.inference.engine import Engine, EngineState
from cpt_serving.inference.errors import InvalidRequestError, ModelNotFoundError
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.observers import ModelObserver
from cpt_serving.inference.threads import Threads
from cpt_serving.repository.model_directory import ModelLocation, find_models
from cpt_serving.repository.model_table import Entry, Key, ModelTable
from cpt_serving.settings import ServeSettings

logger = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.01
_BY_REQUEST = "unloaded by request"


class ModelRepository:
    """The models of the bundles at a path.

    Args:
        settings: Settings with the path and the options of inference.
        observe: Creates the observer of a model version when it is opened.

    Raises:
        BundleError: If there is no bundle at the path and none can be added later, or its only one cannot be opened.
    """

    def __init__(
        self, settings: ServeSettings, observe: Callable[[Bundle], ModelObserver] = lambda _: ModelObserver()
    ) -> None:
        self._settings = settings
        self._observe = observe
        self._threads = Threads(settings.inferences_at_once, "compute")
        self._decoders = Threads(available_cores(), "decode")
        self._memory = MemoryBudget(settings.decode_bytes)
        self.models = ModelTable()
        """The present models, which answer requests."""
        self._changing = asyncio.Lock()
        self._look_again = asyncio.Event()
        self.problem = ""
        """Reason for which the last check of the path changed nothing; loaded models are served nevertheless."""
        locations = find_models(settings.bundle)
        if not locations and not settings.watch_s:
            # Nothing can be added later: the error says what the directory is instead.
            Bundle.open(settings.bundle)
        for location in locations:
            self._add(location)

    def begin_shutdown(self) -> None:
        """Fail readiness from now on; requests are still answered."""
        self.models.stopping = True
        for entry in self.models.values():
            if entry.engine is not None:
                entry.engine.retire("the server is shutting down")

    def load_now(self) -> None:
        """Load the models before the event loop runs.

        Raises:
            CptError: If none of them can be loaded; if some can, the failures of others are logged.
        """
        errors: list[CptError] = [BundleError(entry.reason) for entry in self.models.values() if entry.engine is None]
        for entry in self.models.values():
            if entry.engine is not None:
                try:
                    entry.engine.load_now()
                except CptError as error:
                    entry.engine.fail(error.message)
                    errors.append(error)
        if errors and not any(entry.ready for entry in self.models.values()):
            raise errors[0]

    async def start(self) -> None:
        """Load the models that were found."""
        async with self._changing:
            for entry in list(self.models.values()):
                if entry.engine is not None and entry.engine.state is EngineState.LOADING:
                    await entry.engine.load()

    def close(self) -> None:
        """Stop the threads once they have finished their jobs, and wait for that."""
        self._decoders.close()
        self._threads.close()

    async def load(self, name: str, version: str | None = None) -> None:
        """Load a model, or reload it if its files have changed; the old version serves until then.

        Args:
            name: Name of the model.
            version: One version; `None` stands for all versions.

        Raises:
            ModelNotFoundError: If there is no such model.
            InvalidRequestError: If it cannot be loaded.
        """
        async with self._changing:
            found = await self._look()
            keys = [key for key in found if key[0] == name and version in (None, key[1])]
            if not keys:
                raise ModelNotFoundError(f"Expected a model in the repository, but got {_spelled(name, version)}")
            failures = []
            for key in keys:
                if reason := await self._bring_up(key, found[key]):
                    failures.append(f"version {key[1]}: {reason}")
        if failures:
            raise InvalidRequestError(f"Expected {name} to load, but got: {'; '.join(failures)}")

    async def unload(self, name: str, version: str | None = None) -> None:
        """Unload a model and return once its requests are answered. Watching does not load it again.

        Args:
            name: Name of the model.
            version: One version; `None` stands for all versions.

        Raises:
            ModelNotFoundError: If there is no such model.
        """
        async with self._changing:
            keys = self.models.keys_of(name, version)
            if not keys:
                raise ModelNotFoundError(f"Expected a served model, but got {_spelled(name, version)}")
            for key in keys:
                self.models[key].wanted = False
                await self._take_down(self.models[key], _BY_REQUEST)

    def look_again(self) -> None:
        """Have `watch` check the path now."""
        self._look_again.set()

    async def watch(self) -> None:
        """Check the path at the interval of the settings, and on request; never returns."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.watch_s or None):
                    await self._look_again.wait()
            self._look_again.clear()
            await self.refresh()

    async def refresh(self) -> None:
        """Check the path: load new and changed models, and unload removed ones.

        If the path cannot be read or holds no model any more, nothing is unloaded, because a volume may have been
        detached: the loaded models stay, and `problem` is set.
        """
        async with self._changing:
            try:
                found = await self._look()
            except CptError as error:
                self._note(error.message)
                return
            if not found and self.models:
                self._note(f"Expected models at {self._settings.bundle}, but there are none any more")
                return
            self._note("")
            for key, location in found.items():
                entry = self.models.get(key)
                if entry is None or (entry.wanted and entry.location.fingerprint != location.fingerprint):
                    try:
                        await self._bring_up(key, location)
                    except Exception:
                        # It is tried again at each check, and must not keep the others from being loaded.
                        logger.exception("loading %s version %s failed", *key)
            # One that is replaced by a bundle of another name or version serves until that one does.
            paths = {location.path for location in found.values()}
            replaced = {key for key, entry in self.models.items() if entry.ready and entry.location.path in paths}
            for key in [key for key in self.models if key not in found and key not in replaced]:
                logger.info("%s version %s is gone from %s", *key, self._settings.bundle)
                await self._take_down(self.models.pop(key), "its directory was removed")

    def _note(self, problem: str) -> None:
        """Record whether the path could be checked; a change is logged once."""
        if problem and problem != self.problem:
            logger.error("%s; what is loaded is served all the same", problem)
        elif self.problem and not problem:
            logger.info("the models at %s can be read again", self._settings.bundle)
        self.problem = problem

    async def _look(self) -> dict[Key, ModelLocation]:
        """Return the bundles now at the path, by name and version."""
        known = {entry.location.path: (key, entry.location.fingerprint) for key, entry in self.models.items()}

        def address(location: ModelLocation) -> Key:
            key, fingerprint = known.get(location.path, (None, None))
            # Unchanged bundles need not be opened at each check.
            return key if key is not None and fingerprint == location.fingerprint else location.address(key)

        def look() -> dict[Key, ModelLocation]:
            return {address(location): location for location in find_models(self._settings.bundle)}

        return await anyio.to_thread.run_sync(look)

    def _add(self, location: ModelLocation) -> None:
        """Add a bundle found at the start, not loaded yet."""
        try:
            engine = self._open(location)
        except CptError as error:
            if location.name is None:
                raise
            logger.error("%s", error.message)
            self.models[location.address()] = Entry(location, None, error.message, initial=True)
        else:
            self.models[engine.bundle.name, engine.bundle.version] = Entry(location, engine, initial=True)

    def _open(self, location: ModelLocation) -> Engine[Adapter]:
        bundle = location.open()
        adapter = adapter_of(bundle, self._settings, self._memory)
        return Engine(adapter, self._settings, self._threads, self._decoders, self._observe(bundle))

    async def _bring_up(self, key: Key, location: ModelLocation) -> str:
        """Load a version while the old one serves, then replace it; return the reason if that failed.

        One that is cancelled, or ends in an error of an unknown kind, leaves the table as it was: the next tries again.
        """
        before = self.models.get(key)
        if before and before.ready and not before.reason and before.location.fingerprint == location.fingerprint:
            return ""
        entry = Entry(replace(location, fingerprint=()), None) if before is None else replace(before, wanted=True)
        self.models[key] = entry
        try:
            engine = await anyio.to_thread.run_sync(self._open, location)
            if not entry.ready:
                entry.engine = engine
            await engine.load()
        except CptError as error:
            return self._refuse(entry, key, location, error.message)
        except BaseException:
            if before is None:
                del self.models[key]
            else:
                self.models[key] = before
            raise
        if engine.state is not EngineState.READY:
            return self._refuse(entry, key, location, engine.reason)
        old, entry.engine, entry.reason, entry.location = entry.engine, engine, "", location
        logger.info("serving %s version %s, model.onnx %.12s…", *key, engine.bundle.sha256)
        if old is not None and old is not engine:
            await self._drain(old, "it was replaced")
        for other in [other for other, each in self.models.items() if each.location.path == location.path]:
            if other != key:
                logger.info("%s version %s is replaced by %s version %s", *other, *key)
                await self._take_down(self.models.pop(other), "it was replaced")
        return ""

    def _refuse(self, entry: Entry, key: Key, location: ModelLocation, reason: str) -> str:
        """Record why a version was not loaded; the old one serves on."""
        entry.location, entry.reason = location, reason
        logger.error("%s version %s was not loaded: %s", *key, reason)
        return reason

    async def _take_down(self, entry: Entry, reason: str) -> None:
        engine, entry.reason = entry.engine, reason
        if engine is not None:
            try:
                await self._drain(engine, reason)
            finally:
                # Also if nobody waits for the end any more: a retired engine cannot be taken back.
                entry.engine = None

    async def _drain(self, engine: Engine[Adapter], reason: str) -> None:
        """Wait until an engine that was removed from the table has answered its requests."""
        engine.retire(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_s):
                while engine.pending:
                    await asyncio.sleep(_DRAIN_POLL_S)


def _spelled(name: str, version: str | None) -> str:
    return f"{name!r:.100}" if version is None else f"version {version!r:.50} of {name!r:.100}"
