"""The adapter of a bundle is the one that its task names, in this project or in an installed package."""

import asyncio
import threading

import numpy as np
import pytest

from cpt_deploy.errors import BundleError
from cpt_deploy.recipe.tasks import tasks
from cpt_serving import load_settings
from cpt_serving.adapters import Adapter, adapter_of
from cpt_serving.adapters.images import ImageAdapter
from cpt_serving.inference.batching import Batcher
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.observers import ModelObserver
from cpt_serving.inference.threads import Threads
from cpt_serving.oip.answers import classes_of

PLUGIN = """
from cpt_serving.adapters import Adapter

class Rounded(Adapter):
    form = "tensors"

    def predictions(self, outputs, top_k):
        return [round(float(price)) for price in outputs["price"][:, 0]]

class Task:
    adapter = "plugged_prices:Rounded"

TASK = Task()
"""


def adapter_for(bundle) -> Adapter:
    return adapter_of(bundle, load_settings(bundle=bundle.path), MemoryBudget(1 << 20))


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package that registers the task of the regression by an entry point."""
    (tmp_path / "plugged_prices.py").write_text(PLUGIN)
    facts = tmp_path / "plugged_prices-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-prices\nVersion: 1\n")
    entry = facts / "entry_points.txt"
    entry.write_text("[cpt_deploy.tasks]\ntabular-regression = plugged_prices:TASK\n")
    monkeypatch.syspath_prepend(tmp_path)
    tasks._entries.pop("tabular-regression", None)  # tests of the example may have imported the one of that name
    yield entry
    tasks._entries.pop("tabular-regression", None)


def test_a_task_of_another_package_brings_its_adapter(plugin, price_bundle, connect_to):
    assert type(adapter_for(price_bundle)).__name__ == "Rounded"
    with connect_to(price_bundle) as client:
        answer = client.post("/predict", json={"inputs": {"measures": [[3.5, 1, 2]], "district": [[2]]}})
        assert answer.json()["predictions"] == [32]


def test_a_task_that_cannot_be_imported_is_a_bundle_that_cannot_be_opened(plugin, price_bundle):
    plugin.write_text("[cpt_deploy.tasks]\ntabular-regression = a_module_that_is_missing:TASK\n")
    with pytest.raises(BundleError, match=r"Expected the task tabular-regression of .*a_module_that_is_missing"):
        adapter_for(price_bundle)


def test_bundles_of_known_tasks_have_theirs_and_others_the_general_one(price_bundle, shared_bundle):
    assert type(adapter_for(price_bundle)) is Adapter
    assert type(adapter_for(shared_bundle)) is ImageAdapter


def test_states_begin_with_zeros_and_come_back_as_inputs(language_like, connect_to):
    """A model with states that is no language model: outputs of a call are sent back as inputs of the next."""
    with connect_to(language_like) as client:
        first = client.post("/predict", json={"inputs": {"step": [[1.0], [2.0]]}}).json()["predictions"]
        assert [row["total_after"] for row in first] == [1, 2]
        state = [[row["total_after"]] for row in first]
        second = client.post("/predict", json={"inputs": {"step": [[1.0], [2.0]], "total": state}}).json()
        assert [row["total_after"] for row in second["predictions"]] == [2, 4]
        tensors = [
            {"name": name, "datatype": "FP32", "shape": [1, 1], "data": [value]}
            for name, value in (("total", 5.0), ("step", 1.5))
        ]
        answer = client.post("/v2/models/sums/infer", json={"inputs": tensors}).json()
        assert np.allclose([output["data"] for output in answer["outputs"]], [[6.5], [6.5]])


def test_classes_have_no_names_where_the_labels_are_those_of_another_output():
    values = np.array([[0.5, 2.0, 1.0]], np.float32)
    texts = [classes_of("y", values, labels, 2, binary=False).values.tolist() for labels in (("a", "b", "c"), ("a",))]
    assert texts == [[[b"2.0:1:b", b"1.0:2:c"]], [[b"2.0:1", b"1.0:2"]]]


def test_rows_that_get_lost_in_a_batch_are_an_error_of_its_requests(two_rows_bundle):
    adapter, threads, gate = adapter_for(two_rows_bundle), Threads(1, "compute"), threading.Event()
    adapter.load()

    async def scenario():
        batcher = Batcher(adapter, threads, ModelObserver())
        threads.offer(gate.wait)  # so that the requests are joined
        requests = [asyncio.ensure_future(batcher.submit({"x": np.full((1, 1), row, np.float32)})) for row in range(4)]
        await asyncio.sleep(0)
        gate.set()
        async with asyncio.timeout(60):
            for error in await asyncio.gather(*requests, return_exceptions=True):
                with pytest.raises(
                    RuntimeError, match=r"Expected 'y' of slices to have 4 rows, .* got the shape \(2, 1\)"
                ):
                    raise error
            assert (await batcher.submit({"x": np.ones((2, 1), np.float32)})).outputs["y"].shape == (2, 1)

    try:
        asyncio.run(scenario())
    finally:
        gate.set()
        threads.close()


def test_rows_that_get_lost_in_a_request_are_said_in_the_log_alone(two_rows_bundle, connect_to, caplog):
    with connect_to(two_rows_bundle) as client:
        answers = [client.post("/predict", json={"inputs": [[1.0]] * rows}) for rows in (2, 3)]
        tensor = {"name": "x", "datatype": "FP32", "shape": [3, 1], "data": [1.0] * 3}
        answers.append(client.post("/v2/models/slices/infer", json={"inputs": [tensor]}))
    assert [answer.status_code for answer in answers] == [200, 500, 500]
    assert "Internal error" in answers[2].json()["error"]
    assert "Expected 'y' of slices to have 3 rows" in caplog.text
