import asyncio
import os
import shutil
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.errors import BundleError
from cpt_serving import load_settings
from cpt_serving.inference.engine import Engine
from cpt_serving.inference.errors import InvalidRequestError, ModelNotFoundError, NotReadyError
from cpt_serving.repository.model_directory import version_order
from cpt_serving.repository.model_repository import ModelRepository
from tests.unit.serving.conftest import infer, replace_labels, started, states


def test_versions_have_the_order_that_people_expect():
    names = ["v10", "10", "9", "v9", "bundle-8bit", "bundle-10bit", "02", "1.10", "1.9"]
    assert sorted(names, key=version_order) == [
        "bundle-8bit", "bundle-10bit", "v9", "v10", "1.9", "1.10", "02", "9", "10",
    ]  # fmt: skip


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.randoms())
def test_any_names_have_one_order(names, random):
    shuffled = random.sample(names, len(names))
    assert version_order(max(names, key=version_order)) == version_order(max(shuffled, key=version_order))


def test_a_bundle_is_served_under_its_own_name(shared_bundle):
    async def scenario():
        async with started(shared_bundle.path) as repository:
            assert states(repository) == {("colours", "1"): "READY"}
            assert (
                repository.models.find() is repository.models.find("colours") is repository.models.find("colours", "1")
            )
            repository.models.require_ready()

    asyncio.run(scenario())


def test_a_directory_is_served_under_the_names_of_its_directories(models):
    path = models(one=["1", "10", "9"], two=["a"])
    (path / "notes.txt").write_text("no model")
    (path / "empty").mkdir()
    (path / ".copying").mkdir()
    shutil.copytree(path / "two" / "a", path / ".copying" / "1")
    shutil.copytree(path / "two" / "a", path / "three")

    async def scenario():
        async with started(path) as repository:
            assert repository.models.names == ("one", "three", "two")
            assert repository.models.versions("one") == ["1", "9", "10"]
            assert set(states(repository).values()) == {"READY"}
            assert repository.models.find("one").bundle.version == "10"
            assert repository.models.find("one", "9").bundle.version == "9"
            assert repository.models.find("three").bundle.version == "1"
            with pytest.raises(InvalidRequestError, match="one, three, two"):
                _ = repository.models.find()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "version"),
    [("other", None), ("one", "2"), ("..", "models"), ("one/1", None), ("one", "../1"), ("", None), ("/", "1")],
)
def test_names_are_looked_up_and_never_become_paths(models, name, version):
    async def scenario():
        async with started(models(one=["1"])) as repository:
            for ask in (repository.models.find, repository.load, repository.unload):
                with pytest.raises(ModelNotFoundError):  # noqa: PT012  two of the three are to be awaited
                    asked = ask(name, version)
                    await asked

    asyncio.run(scenario())


def test_unloading_is_remembered_until_loading(models):
    path = models(one=["1", "2"])

    async def scenario():
        async with started(path) as repository:
            await repository.unload("one", "2")
            assert states(repository) == {("one", "1"): "READY", ("one", "2"): "UNAVAILABLE"}
            assert "by request" in repository.models.index()[1].reason
            assert repository.models.find("one").bundle.version == "1"
            with pytest.raises(ModelNotFoundError, match="unloaded"):
                repository.models.find("one", "2")
            await repository.refresh()
            assert states(repository)["one", "2"] == "UNAVAILABLE"
            await repository.unload("one")
            with pytest.raises(NotReadyError, match="none is loaded"):
                repository.models.require_ready()
            await repository.load("one")
            assert set(states(repository).values()) == {"READY"}
            assert repository.models.find("one").bundle.version == "2"
            repository.models.require_ready()

    asyncio.run(scenario())


def test_new_versions_take_over_and_removed_ones_go(models, shared_bundle):
    path = models(one=["1"])

    async def scenario():
        async with started(path) as repository:
            old = repository.models.find("one")
            shutil.copytree(shared_bundle.path, path / "one" / "2")
            shutil.copytree(shared_bundle.path, path / "another" / "1")
            await repository.refresh()
            assert repository.models.find("one").bundle.version == "2"
            assert repository.models.find("one", "1") is old
            assert repository.models.names == ("another", "one")
            shutil.rmtree(path / "one" / "1")
            await repository.refresh()
            assert repository.models.versions("one") == ["2"]
            # Whoever found it before it went is answered all the same.
            assert (await infer(old)).outputs["logits"].shape == (1, 3)

    asyncio.run(scenario())


def test_names_that_are_not_in_utf8_are_skipped_and_logged_once(models, shared_bundle, connect_to, caplog):
    path = models(one=["1"])
    for place in (b"\xff/1", b"one/\xfe"):
        shutil.copytree(shared_bundle.path, path / os.fsdecode(place))
    (path / os.fsdecode(b"\xfd.onnx")).write_bytes(shared_bundle.onnx_path.read_bytes())
    with connect_to(SimpleNamespace(path=path)) as client:
        assert client.get("/v2/models/two").status_code == 404
        assert client.get("/models").status_code == client.get("/metrics").status_code == 200
        assert [model["name"] for model in client.post("/v2/repository/index").json()] == ["one"]
        client.portal.call(client.service.repository.refresh)
    skipped = [Path(record.args[0]).name for record in caplog.records if "UTF-8" in record.msg]
    assert sorted(skipped) == ["\udcfd.onnx", "\udcfe", "\udcff"]


def test_a_broken_update_leaves_what_serves(models, bundle_contents):
    path = models(one=["1"])
    place = path / "one" / "1"

    async def scenario():
        async with started(path) as repository:
            before = repository.models.find("one")
            labels = (place / "labels.txt").read_text()
            (place / "labels.txt").write_text("edited")
            await repository.refresh()
            assert repository.models.find("one") is before
            assert states(repository) == {("one", "1"): "READY"}
            assert "labels.txt" in repository.models.index()[0].reason
            repository.models.require_ready()
            with pytest.raises(InvalidRequestError, match=r"labels\.txt"):
                await repository.load("one")
            (place / "labels.txt").write_text(labels)
            await repository.refresh()
            assert repository.models.index()[0].reason == ""

    asyncio.run(scenario())


@asynccontextmanager
async def cancelled_while_loading(monkeypatch, ask):
    """Cancels what `ask` starts while the files of a model are loaded, as the end of its connection does."""
    entered, gate = threading.Event(), threading.Event()
    real = Engine.load_now

    def slowly(engine):
        entered.set()
        assert gate.wait(60)
        real(engine)

    with monkeypatch.context() as slow:
        slow.setattr(Engine, "load_now", slowly)
        task = asyncio.create_task(ask)
        try:
            assert await asyncio.to_thread(entered.wait, 60)
            yield
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            gate.set()


@pytest.mark.parametrize("again", ["load", "watch"])
def test_a_load_that_is_cancelled_is_done_by_the_next(models, bundle_contents, monkeypatch, again):
    path = models(one=["1"])

    async def scenario():
        async with started(path) as repository:
            before = repository.models.find("one")
            replace_labels(path / "one" / "1", bundle_contents, ("a", "b", "c"))
            async with cancelled_while_loading(monkeypatch, repository.load("one")):
                assert repository.models.find("one") is before
            assert repository.models.find("one") is before
            await (repository.load("one") if again == "load" else repository.refresh())
            assert repository.models.find("one").bundle.processor.labels == ("a", "b", "c")

    asyncio.run(scenario())


def test_a_first_load_that_is_cancelled_leaves_no_trace(models, shared_bundle, monkeypatch):
    path = models(one=["1"])

    async def scenario():
        async with started(path) as repository:
            await repository.unload("one")
            unloaded = repository.models.index()
            shutil.copytree(shared_bundle.path, path / "new" / "1")
            for name in ("one", "new"):
                async with cancelled_while_loading(monkeypatch, repository.load(name)):
                    assert states(repository)[name, "1"] == "LOADING"
                assert repository.models.index() == unloaded
            await repository.refresh()
            assert states(repository) == {("one", "1"): "UNAVAILABLE", ("new", "1"): "READY"}
            await repository.load("one")
            assert states(repository)["one", "1"] == "READY"

    asyncio.run(scenario())


def test_an_unknown_failure_is_tried_again_and_keeps_no_other_from_being_loaded(
    models, shared_bundle, bundle_contents, monkeypatch, caplog
):
    path = models(one=["1"])

    async def scenario():
        async with started(path) as repository:
            before, really = repository.models.find("one"), repository._open
            replace_labels(path / "one" / "1", bundle_contents, ("a", "b", "c"))
            shutil.copytree(shared_bundle.path, path / "two" / "1")

            def fail(location):
                if location.name == "one":
                    raise RuntimeError("a bug")
                return really(location)

            with monkeypatch.context() as broken:
                broken.setattr(repository, "_open", fail)
                with pytest.raises(RuntimeError, match="a bug"):
                    await repository.load("one")
                for _ in range(2):
                    await repository.refresh()
                    assert repository.models.find("one") is before
                    assert states(repository) == {("one", "1"): "READY", ("two", "1"): "READY"}
            assert caplog.text.count("loading one version 1 failed") == 2
            await repository.refresh()
            assert repository.models.find("one").bundle.processor.labels == ("a", "b", "c")

    asyncio.run(scenario())


def test_an_unload_that_is_cancelled_unloads_all_the_same(models):
    async def scenario():
        async with started(models(one=["1"])) as repository:
            engine = repository.models.find("one")
            with engine.admit():
                task = asyncio.create_task(repository.unload("one"))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert repository.models["one", "1"].engine is None
            await repository.load("one")
            assert repository.models.find("one").state == "READY"

    asyncio.run(scenario())


def test_a_version_that_arrives_in_parts_is_tried_again_and_readiness_stays(models, shared_bundle):
    path = models(one=["1"])

    async def scenario():
        async with started(path) as repository:
            for name in ("one/2", "new/1"):
                shutil.copytree(shared_bundle.path, path / name)
                (path / name / "model.onnx").unlink()
            await repository.refresh()
            assert states(repository) == {
                ("new", "1"): "UNAVAILABLE", ("one", "1"): "READY", ("one", "2"): "UNAVAILABLE",
            }  # fmt: skip
            assert repository.models.find("one").bundle.version == "1"
            with pytest.raises(NotReadyError, match=r"model\.onnx.*missing"):
                repository.models.find("new")
            repository.models.require_ready()
            for name in ("one/2", "new/1"):
                shutil.copy(shared_bundle.onnx_path, path / name)
            await repository.refresh()
            assert set(states(repository).values()) == {"READY"}

    asyncio.run(scenario())


def test_a_directory_starts_with_what_is_sound_and_says_what_is_not(models):
    path = models(one=["1", "2"], two=["1"])
    (path / "one" / "2" / "model.onnx").write_bytes(b"no model")

    async def scenario():
        async with started(path) as repository:
            assert repository.models.find("one").bundle.version == "1"
            assert states(repository)["one", "2"] == "UNAVAILABLE"
            repository.models.require_ready()

    asyncio.run(scenario())
    (path / "two" / "1" / "labels.txt").unlink()
    repository = ModelRepository(load_settings(bundle=path))
    repository.load_now()
    with pytest.raises(NotReadyError, match=r"labels\.txt"):
        repository.models.require_ready()
    shutil.rmtree(path / "one" / "1")
    with pytest.raises(BundleError):
        ModelRepository(load_settings(bundle=path)).load_now()


def test_a_directory_without_models_waits_for_the_first(models, shared_bundle):
    path = models()
    path.mkdir()
    with pytest.raises(BundleError, match="it is not a bundle"):
        ModelRepository(load_settings(bundle=path))

    async def scenario():
        async with started(path, watch_s=3600) as repository:
            for ask in (repository.models.require_ready, repository.models.find):
                with pytest.raises(NotReadyError, match="there is none yet"):
                    ask()
            shutil.copytree(shared_bundle.path, path / "one" / "1")
            await repository.refresh()
            repository.models.require_ready()
            shutil.rmtree(path)
            await repository.refresh()
            assert "there is nothing" in repository.problem
            assert repository.models.find().bundle.name == "one"

    asyncio.run(scenario())


def test_an_unloaded_model_gives_its_memory_back(models):
    import gc
    import weakref

    async def scenario():
        async with started(models(one=["1"])) as repository:
            engine = weakref.ref(repository.models.find("one"))
            await infer(engine())
            await repository.unload("one")
            for _ in range(500):
                # The thread that computed may still be on its way out.
                gc.collect()
                if engine() is None:
                    break
                await asyncio.sleep(0.01)
            assert engine() is None

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["moved away", "emptied", "unreadable", "a version unreadable"])
def test_a_directory_that_came_loose_unloads_nothing_and_says_so(models, monkeypatch, caplog, fault):
    path = models(one=["1", "2"])
    away = path.with_name("away")

    def refuse(directory):
        raise PermissionError(13, "Permission denied", str(directory))

    async def scenario():
        async with started(path) as repository:
            with monkeypatch.context() as broken:
                match fault:
                    case "moved away":
                        path.rename(away)
                    case "emptied":
                        path.rename(away)
                        path.mkdir()
                    case "unreadable":
                        broken.setattr(Path, "iterdir", refuse)
                    case _:
                        broken.setattr(Path, "is_file", refuse)
                for _ in range(2):
                    await repository.refresh()
                    assert set(states(repository).values()) == {"READY"}
                    assert str(path) in repository.problem
                    repository.models.require_ready()
                assert caplog.text.count("is served all the same") == 1
            if away.exists():
                if path.exists():
                    path.rmdir()
                away.rename(path)
            shutil.rmtree(path / "one" / "2")
            await repository.refresh()
            assert repository.problem == ""
            assert states(repository) == {("one", "1"): "READY"}

    with caplog.at_level("INFO", "cpt_serving"):
        asyncio.run(scenario())
