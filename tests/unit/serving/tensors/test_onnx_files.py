"""ONNX files without a bundle, served as they are: every type, whole tensors, rows that depend on each other."""

import json
import socket
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from cpt_cli.main import main
from cpt_deploy.bundle.bare import bundle_of_file
from cpt_deploy.errors import BundleError, ValidationFailedError
from tests.unit.serving.conftest import connect

KINDS = {
    "FP16": (TensorProto.FLOAT16, np.float16), "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64), "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16), "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64), "UINT8": (TensorProto.UINT8, np.uint8),
    "UINT16": (TensorProto.UINT16, np.uint16), "UINT32": (TensorProto.UINT32, np.uint32),
    "UINT64": (TensorProto.UINT64, np.uint64), "BOOL": (TensorProto.BOOL, np.bool_),
    "BYTES": (TensorProto.STRING, np.object_),
}  # fmt: skip
VALUES = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, (_, dtype) in KINDS.items() if name != "BYTES"} | {
    "BYTES": np.array([["a", "bé", ""], ["x", "y", "z"]], object)
}
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def save(path, nodes, inputs, outputs, constants=()):
    infos = [[helper.make_tensor_value_info(*each) for each in tensors] for tensors in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *infos, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of several kinds, each a model of the server."""
    path, real = tmp_path_factory.mktemp("files"), TensorProto.FLOAT
    copies = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in KINDS]
    save(
        path / "types.onnx",
        copies,
        [(name, kind, [2, f"size_{name}"]) for name, (kind, _) in KINDS.items()],
        [(f"{name}_out", kind, [2, f"size_{name}"]) for name, (kind, _) in KINDS.items()],
    )
    scaled = [helper.make_node("Mul", ["x", "y"], ["z"]), helper.make_node("ReduceSum", ["z"], ["total"], keepdims=0)]
    save(
        path / "scalar.onnx",
        scaled,
        [("x", real, []), ("y", real, ["a", "b"])],
        [("z", real, ["a", "b"]), ("total", real, [])],
    )
    weights = numpy_helper.from_array(WEIGHTS, "w")
    save(
        path / "rows.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", real, ["batch", 4])],
        [("y", real, ["batch", 3])],
        [weights],
    )
    save(
        path / "columns.onnx",
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [("x", real, ["N", 4])],
        [("y", real, ["N", 4])],
    )
    value = numpy_helper.from_array(np.arange(3, dtype=np.float32))
    save(path / "constant.onnx", [helper.make_node("Constant", [], ["y"], value=value)], [], [("y", real, [3])])
    shaped = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    given = [("x", real, ["N", 4]), ("s", TensorProto.INT64, [2])]
    save(path / "shaped.onnx", shaped, given, [("y", real, ["A", "B"])])
    for name, kind, width in (("texts", TensorProto.STRING, 1), ("empty", real, 0), ("half", TensorProto.FLOAT16, 2)):
        copy = [helper.make_node("Identity", ["x"], ["y"])]
        save(path / f"{name}.onnx", copy, [("x", kind, ["N", width])], [("y", kind, ["N", width])])
    two = [helper.make_node("Add", ["x", "y"], ["z"])]
    save(path / "sizes.onnx", two, [("x", real, ["a"]), ("y", real, ["b"])], [("z", real, ["c"])])
    return path


@pytest.fixture(scope="module")
def addresses(folder, running_server, tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with running_server(tmp_path_factory.mktemp("server"), SimpleNamespace(path=folder), grpc_port=port) as (_, url):
        yield url.removeprefix("http://"), f"127.0.0.1:{port}"


@pytest.fixture(params=["http", "grpc"])
def client(request, addresses):
    if request.param == "http":
        return triton, triton.InferenceServerClient(addresses[0])
    return triton_grpc, triton_grpc.InferenceServerClient(addresses[1])


def tensor(kind, name, array):
    given = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return given


def test_tensors_of_every_type_come_back_as_they_went_in(client):
    kind, server = client
    answer = server.infer("types", [tensor(kind, name, array) for name, array in VALUES.items()])
    for name, array in VALUES.items():
        got = answer.as_numpy(f"{name}_out")
        if name == "BYTES":
            got = np.array([text.decode() for text in got.ravel()], object).reshape(got.shape)
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype


def test_empty_dimensions_and_scalars(client):
    kind, server = client
    empty = {name: array[:, :0] if name != "FP32" else array for name, array in VALUES.items()}
    answer = server.infer("types", [tensor(kind, name, array) for name, array in empty.items()])
    assert answer.as_numpy("INT64_out").shape == (2, 0)
    answer = server.infer(
        "scalar", [tensor(kind, "x", np.array(2, np.float32)), tensor(kind, "y", np.ones((2, 3), np.float32))]
    )
    assert answer.as_numpy("total").shape == ()
    assert float(answer.as_numpy("total")) == 12
    assert answer.as_numpy("z").shape == (2, 3)


def test_a_model_without_inputs(client):
    _, server = client
    np.testing.assert_array_equal(server.infer("constant", []).as_numpy("y"), [0, 1, 2])


def test_rows_that_depend_on_each_other_are_computed_by_themselves(client):
    kind, server = client
    got = server.infer("columns", [tensor(kind, "x", ROWS)]).as_numpy("y")
    np.testing.assert_allclose(got.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(server.infer("rows", [tensor(kind, "x", ROWS)]).as_numpy("y"), ROWS @ WEIGHTS, rtol=1e-5)


def test_values_that_onnxruntime_refuses_are_said_without_its_source(client):
    kind, server = client
    x, shape = np.zeros((2, 4), np.float32), np.array([5, 2])
    with pytest.raises(InferenceServerException, match="cannot be reshaped to the requested shape") as refused:
        server.infer("shaped", [tensor(kind, "x", x), tensor(kind, "s", shape)])
    assert "onnxruntime_src" not in str(refused.value)


def test_sizes_that_do_not_fit_each_other_are_the_clients_mistake(client):
    kind, server = client
    with pytest.raises(InferenceServerException, match="Expected values that the model takes"):
        server.infer("sizes", [tensor(kind, "x", np.ones(2, np.float32)), tensor(kind, "y", np.ones(3, np.float32))])


def test_a_file_that_runs_with_no_size_that_is_tried_says_why_rows_are_not_joined(tmp_path, caplog):
    table = numpy_helper.from_array(np.zeros((3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "size"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    assert not bundle_of_file(tmp_path / "m.onnx").signature.joins_rows
    assert "are not joined" in caplog.text
    assert "MatMul" in caplog.text


def test_batches_are_joined_only_where_rows_are_independent(folder):
    joined = {
        name: bundle_of_file(folder / f"{name}.onnx").signature.joins_rows for name in ("rows", "columns", "scalar")
    }
    assert joined == {"rows": True, "columns": False, "scalar": False}


def test_ranges_computed_over_the_batch_make_rows_dependent(folder, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(folder / "rows.onnx", tmp_path / "dynamic.onnx")
    assert not bundle_of_file(tmp_path / "dynamic.onnx").signature.joins_rows


def test_missing_evidence_is_said(folder):
    with connect(SimpleNamespace(path=folder / "rows.onnx")) as client:
        assert client.get("/v2/models/rows").json()["parameters"]["evidence"].startswith("none")
        config = client.get("/v2/models/rows/config").json()
        assert config["parameters"]["evidence"]["string_value"].startswith("none")
        assert config["max_batch_size"] > 0
        found = client.get("/evidence").json()
        assert found["bare"]
        assert found["validation"] is None
        assert "cpt_serve_model_info" in client.get("/metrics").text
        assert "ONNX file without evidence" in client.get("/page/evidence.js").text
        answer = client.post("/predict", json={"inputs": {"x": ROWS.tolist()}}).json()
    np.testing.assert_allclose([row["y"] for row in answer["predictions"]], ROWS @ WEIGHTS, rtol=1e-5)


def test_predict_takes_whole_tensors_where_rows_are_not_joined(folder):
    with connect(SimpleNamespace(path=folder / "scalar.onnx")) as client:
        assert client.get("/v2/models/scalar/config").json()["max_batch_size"] == 0
        answer = client.post("/predict", json={"inputs": {"x": 2, "y": [[1, 2]]}}).json()
        assert answer["predictions"] == [{"z": [[2, 4]], "total": 6}]
        wrong = client.post("/predict", json={"inputs": {"x": 2, "y": [1, 2]}})
    assert wrong.status_code == 400
    assert "'y' of the shape [-1, -1]" in wrong.json()["error"]


def test_the_command_line_predicts_with_a_file(folder, tmp_path, capsys):
    np.savez(tmp_path / "rows.npz", x=ROWS)
    assert main(["predict", str(folder / "rows.onnx"), "--inputs", str(tmp_path / "rows.npz"), "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    np.testing.assert_allclose([row["y"] for row in predictions], ROWS @ WEIGHTS, rtol=1e-5)


@pytest.mark.parametrize("data", [["a", 1], "a", [["a", "b", "c"]], [[None] * 3] * 2])
def test_texts_of_another_form_are_refused(folder, data):
    arrays = {name: array for name, array in VALUES.items() if name != "BYTES"}
    inputs = [
        {"name": name, "datatype": "FP32" if name == "FP16" else name, "shape": [2, 3], "data": array.tolist()}
        for name, array in arrays.items()
    ]
    with connect(SimpleNamespace(path=folder / "types.onnx")) as client:
        given = {"name": "BYTES", "datatype": "BYTES", "shape": [2, 3], "data": data}
        answer = client.post("/v2/models/types/infer", json={"inputs": [*inputs, given]})
        assert answer.status_code == 400, answer.text
        given["data"] = VALUES["BYTES"].tolist()
        answer = client.post("/v2/models/types/infer", json={"inputs": [*inputs, given]})
        assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["BYTES_out"] == VALUES["BYTES"].ravel().tolist()
    assert outputs["FP16_out"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["texts", "empty", "constant", "scalar"])
@pytest.mark.parametrize("body", [b"", b"12345678"])
def test_a_body_without_json_needs_rows_of_one_size(folder, name, body):
    with connect(SimpleNamespace(path=folder / f"{name}.onnx")) as client:
        headers = {"Inference-Header-Content-Length": "0"}
        answer = client.post(f"/v2/models/{name}/infer", content=body, headers=headers)
    assert (answer.status_code, "no rows of one size" in answer.json()["error"]) == (400, True)


def test_texts_have_no_classes(client):
    kind, server = client
    wanted = kind.InferRequestedOutput("y", class_count=1)
    with pytest.raises(InferenceServerException, match="'y' has no classes"):
        server.infer("texts", [tensor(kind, "x", np.array([["a"], ["b"]], object))], outputs=[wanted])


def test_numbers_beyond_float16_are_refused_in_json_too(folder):
    with connect(SimpleNamespace(path=folder / "half.onnx")) as client:
        given = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 65504]}
        infer, predict = "/v2/models/half/infer", "/predict"
        assert client.post(infer, json={"inputs": [given]}).json()["outputs"][0]["data"] == [1.5, 65504]
        given["data"] = [1.5, 1e5]
        bodies = {infer: {"inputs": [given]}, predict: {"inputs": {"x": [[1.5, 1e5]]}}}
        answers = [client.post(path, json=body) for path, body in bodies.items()]
    assert [(answer.status_code, "float16's range" in answer.text) for answer in answers] == [(400, True)] * 2


@pytest.mark.parametrize("setting", ["require_evidence", "require_signature"])
def test_required_evidence_or_signature_refuses_bare_files(folder, setting, tmp_path):
    value = True
    if setting == "require_signature":
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        value = tmp_path / "key.pub"
        value.write_bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    client = connect(SimpleNamespace(path=folder / "rows.onnx"), **{setting: value})
    with pytest.raises(ValidationFailedError, match="an ONNX file without a bundle"):
        client.service.repository.load_now()


def test_types_that_no_client_can_send_are_refused(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    path = save(tmp_path / "half.onnx", nodes, [("x", TensorProto.BFLOAT16, [2])], [("y", TensorProto.FLOAT, [2])])
    with pytest.raises(BundleError, match=r"x of .* is tensor\(bfloat16\)"):
        bundle_of_file(path)
