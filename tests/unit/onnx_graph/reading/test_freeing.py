"""Files of a fixed batch that joins the batch with other sizes, or repeats tensors for each sample, are freed."""

import numpy as np
import pytest

from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.reading.batches import with_free_batch
from tests.unit.onnx_graph.reading.networks import run
from tests.unit.onnx_graph.reading.torch_files import SIZE, written


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "repeating"])
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_inside_of_other_sizes_becomes_free(name: str, dynamo: bool, batch: int) -> None:
    file = written(name, batch, dynamo=dynamo)
    images = np.random.default_rng(0).normal(size=(3 * batch, 3, SIZE, SIZE)).astype(np.float32)
    freed = with_free_batch(read_onnx(file))
    given = freed.inputs[0].name
    parts = [run(file, {given: images[i : i + batch]})[0] for i in range(0, 3 * batch, batch)]
    (got,) = run(freed.original, {given: images})
    wanted = np.concatenate(parts)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 1e-3
