import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cpt_deploy.errors import UsageError
from cpt_serving.client import ModelMetadata, TensorMetadata
from cpt_serving.loadtest import LevelResult
from cpt_serving.loadtest.requests import random_image, random_rows


def metadata(datatype, shape, count=1):
    return ModelMetadata("m", (), "p", (TensorMetadata("x", datatype, shape),) * count, ())


@pytest.mark.parametrize(
    ("datatype", "dtype"), [("FP32", "f4"), ("FP16", "f2"), ("UINT8", "u1"), ("INT64", "i8"), ("BOOL", "?")]
)
def test_random_rows_fit_the_model(datatype, dtype):
    rows = random_rows(metadata(datatype, (-1, 3, 8, 8)), 2, np.random.default_rng(0))
    assert (rows.shape, rows.dtype) == ((2, 3, 8, 8), np.dtype(dtype))
    assert len(np.unique(rows)) > 1


@pytest.mark.parametrize(
    "model", [metadata("BYTES", (-1,)), metadata("FP32", (-1, -1)), metadata("FP32", ()), metadata("FP32", (-1, 2), 2)]
)
def test_other_models_are_refused_with_what_they_take(model):
    with pytest.raises(UsageError, match=model.inputs[0].datatype):
        random_rows(model, 1, np.random.default_rng(0))


def test_random_images_have_the_size_of_the_input():
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = Image.open(io.BytesIO(random_image(metadata("FP32", (-1, channels, 5, 7)), np.random.default_rng(0))))
        assert (image.mode, image.size) == (mode, (7, 5))
    with pytest.raises(UsageError, match="images"):
        random_image(metadata("FP32", (-1, 2, 5, 7)), np.random.default_rng(0))


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_the_least_value_that_the_share_does_not_exceed(latencies, share):
    result = LevelResult(1, 1, 1.0, latencies, {}, {}, complete=True)
    if not latencies:
        assert result.latency_ms(share) is None
        return
    found = result.latency_ms(share) / 1e3
    below = sum(value <= found * (1 + 1e-12) for value in latencies)
    assert math.isclose(min(latencies, key=lambda value: abs(value - found)), found, abs_tol=1e-12)
    assert below >= share * len(latencies) - 1e-9
    assert sum(value < found * (1 - 1e-12) for value in latencies) < share * len(latencies) + 1e-9


def test_figures_as_json_types():
    fields = LevelResult(8, 2, 2.0, [0.001, 0.003], {"status 429": 1}, {}, complete=True).to_dict()
    assert fields["requests_per_s"] == 1.0
    assert fields["rows_per_s"] == 2.0
    assert (fields["p50_ms"], fields["p99_ms"], fields["max_ms"]) == (1.0, 3.0, 3.0)
