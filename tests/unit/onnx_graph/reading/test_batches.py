"""Any number of samples: a batch of a fixed size becomes free, and one of several names gets one."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.reading.batches import with_free_batch
from cpt_deploy.onnx_graph.reading.signatures import signature_of
from cpt_deploy.signature import BATCH

ROWS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


def file_with(batch: int | str, output_batch: int | str | None, folder: Path) -> Path:
    """A Gemm behind a Reshape, whose constant has the batch if that is fixed."""
    shape = [batch if isinstance(batch, int) else -1, 2, 3]
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "sizes"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [output_batch, 2, 4])],
        [
            numpy_helper.from_array(np.array(shape, np.int64), "sizes"),
            numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w"),
        ],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("batch", "output"), [("rows", "rows"), ("rows", "others"), ("rows", None), ("rows", -1), (1, 1), (2, 2)]
)
def test_the_batch_is_free_and_has_one_name(batch: int | str, output: int | str | None, tmp_path: Path) -> None:
    path = file_with(batch, output, tmp_path)
    network = with_free_batch(read_onnx(path))
    signature = signature_of(network, {"x": ROWS}, {})
    assert [tensor.batch for tensor in (*signature.inputs, *signature.outputs)] == [BATCH, BATCH]
    (got,) = onnxruntime.InferenceSession(network.to_model().SerializeToString()).run(None, {"x": ROWS})
    np.testing.assert_allclose(got, ROWS.reshape(5, 2, 3) @ np.arange(12, dtype=np.float32).reshape(3, 4), rtol=1e-5)
