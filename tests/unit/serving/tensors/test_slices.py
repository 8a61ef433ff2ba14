"""Large requests are computed in slices, so that results between the layers take little memory."""

import numpy as np
import pytest

from cpt_serving import load_settings
from cpt_serving.adapters import adapter_of
from cpt_serving.inference.memory import MemoryBudget


@pytest.fixture
def loaded():
    """Loads the adapter of a bundle, which notes the rows of each call of the model."""

    def load(bundle, **settings):
        adapter = adapter_of(bundle, load_settings(bundle=bundle.path, **settings), MemoryBudget(1 << 20))
        adapter.load()
        run, calls = adapter._model.run_checked, []

        def noted(inputs):
            calls.append(adapter.rows(inputs))
            return run(inputs)

        adapter._model.run_checked = noted
        return adapter, calls

    return load


def test_rows_of_a_large_request_have_the_same_bits_in_slices(shared_bundle, loaded):
    adapter, calls = loaded(shared_bundle)
    images = np.random.default_rng(0).uniform(-1, 1, (35, 3, 8, 8)).astype(np.float32)
    (outputs,) = adapter.run([{"image": images}])
    assert calls == [11, 12, 12]
    whole = adapter._model.run({"image": images})
    assert outputs.keys() == whole.keys()
    assert all(outputs[name].tobytes() == whole[name].tobytes() for name in whole)


@pytest.mark.parametrize(("rows", "length", "slices"), [(16, 400, [16]), (16, 1000, [4] * 4), (4, 2100, [1] * 4)])
def test_slices_of_long_rows_are_smaller_than_an_attention_over_them(
    series_bundle, loaded, summed, rows, length, slices
):
    adapter, calls = loaded(series_bundle)
    values = np.ones((rows, length, 4), np.float32)
    (outputs,) = adapter.run([{"values": values}])
    assert calls == slices
    assert all(np.array_equal(outputs[name], made) for name, made in summed({"values": values}).items())


def test_states_are_sliced_as_inputs_are(language_like, loaded):
    adapter, calls = loaded(language_like, max_batch=2)
    steps = np.arange(5, dtype=np.float32).reshape(5, 1)
    (outputs,) = adapter.run([{"step": steps, "total": 10 * steps}])
    assert calls == [1, 2, 2]
    assert np.array_equal(outputs["total_after"], 11 * steps)


def test_an_error_of_one_slice_is_that_of_the_request(price_bundle, loaded):
    adapter, calls = loaded(price_bundle, max_batch=2)
    districts = np.array([[0], [1], [9], [0], [1], [2]])
    (outcome,) = adapter.run([{"measures": np.ones((6, 3), np.float32), "district": districts}])
    assert isinstance(outcome, Exception)
    assert calls == [2, 2]


def test_batches_of_one_request_are_whole(shared_bundle, loaded):
    adapter, calls = loaded(shared_bundle, max_batch=1)
    adapter.run([{"image": np.zeros((3, 3, 8, 8), np.float32)}])
    assert calls == [3]


def test_where_a_size_depends_on_the_values_of_all_rows_they_are_computed_together(series_bundle, loaded):
    adapter, calls = loaded(series_bundle, max_batch=2)
    run = adapter._model.run_checked
    adapter._model.run_checked = lambda inputs: {"sums": run(inputs)["sums"][:, : int(inputs["values"].max())]}
    values = np.arange(1, 4, dtype=np.float32)[:, None, None] * np.ones((3, 5, 4), np.float32)
    (outputs,) = adapter.run([{"values": values}])
    assert (calls, outputs["sums"].shape) == ([1, 2, 3], (3, 3, 4))
