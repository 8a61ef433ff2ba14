"""A bundle that is replaced in its place: by new contents, by one of another name or version, and back."""

import asyncio
import shutil
from dataclasses import replace

import pytest

from cpt_deploy.bundle import write_bundle
from tests.unit.serving.conftest import infer, replace_labels, started, states


@pytest.mark.parametrize("single", [True, False], ids=["bundle", "directory"])
def test_a_bundle_that_is_replaced_in_its_place_is_loaded_again(models, bundle_contents, single):
    path = models(one=["1"])
    place = path / "one" / "1"

    async def scenario():
        async with started(place if single else path) as repository:
            (name,) = repository.models.names
            before = repository.models.find(name)
            await repository.refresh()
            assert repository.models.find(name) is before
            replace_labels(place, bundle_contents, ("a", "b", "c"))
            await repository.load(name)
            assert repository.models.find(name).bundle.processor.labels == ("a", "b", "c")
            assert len(repository.models.index()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("again", ["watch", "load"])
def test_a_bundle_that_is_replaced_by_another_has_the_address_of_that_one(models, bundle_contents, again):
    place = models(one=["1"]) / "one" / "1"

    def put(name):
        shutil.rmtree(place)
        write_bundle(place, contents=replace(bundle_contents(), name=name))

    async def scenario():
        put("before")
        async with started(place) as repository:
            before = repository.models.find("before")
            put("after")
            onnx = (place / "model.onnx").read_bytes()
            (place / "model.onnx").write_bytes(b"edited")
            await repository.refresh()
            # The old one serves until the new one can be loaded.
            assert repository.models.find("before") is before
            assert {name: state for (name, _), state in states(repository).items()} == {
                "before": "READY",
                "after": "UNAVAILABLE",
            }
            (place / "model.onnx").write_bytes(onnx)
            await (repository.refresh() if again == "watch" else repository.load("after"))
            assert repository.models.names == ("after",)
            assert repository.models.find().bundle.name == "after"
            assert (before.status, (await infer(before)).rows) == ("the model is being unloaded: it was replaced", 1)
            repository.models.require_ready()

    asyncio.run(scenario())


def test_the_remains_of_a_replacement_that_is_taken_back_go(models, bundle_contents):
    place = models(one=["1"]) / "one" / "1"

    async def scenario():
        async with started(place) as repository:
            name, kept = repository.models.names[0], place.with_name("kept")
            place.rename(kept)
            write_bundle(place, contents=replace(bundle_contents(), name="after"))
            (place / "model.onnx").write_bytes(b"edited")
            await repository.refresh()
            assert len(repository.models.index()) == 2
            shutil.rmtree(place)
            kept.rename(place)
            await repository.refresh()
            assert [(status.name, status.reason) for status in repository.models.index()] == [(name, "")]

    asyncio.run(scenario())


def test_a_bundle_that_could_not_be_read_at_the_start_gets_its_own_version(models, bundle_contents):
    path = models(one=[], two=["1"])
    place = path / "one"
    write_bundle(place, contents=replace(bundle_contents(), version="7"))
    config = (place / "config.json").read_text()
    (place / "config.json").write_text("{")

    async def scenario():
        async with started(path) as repository:
            assert states(repository)["one", "1"] == "UNAVAILABLE"
            (place / "config.json").write_text(config)
            await repository.refresh()
            assert repository.models.versions("one") == ["7"]
            assert repository.models.find("one").bundle.version == "7"

    asyncio.run(scenario())
