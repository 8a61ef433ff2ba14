"""Any signature by the Open Inference Protocol, over real sockets and with clients that others wrote."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ROWS = {"measures": np.array([[3.5, 1, 2], [0.1, 7, -2]], np.float32), "district": np.array([[2], [1]])}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def addresses(price_bundle, series_bundle, running_server, tmp_path_factory):
    """HTTP and gRPC addresses of one server of both models."""
    folder = tmp_path_factory.mktemp("models")
    for bundle in (price_bundle, series_bundle):
        (folder / bundle.name).mkdir()
        (folder / bundle.name / "1").symlink_to(bundle.path)
    grpc_port = free_port()
    settings = {"grpc_port": grpc_port, "max_rows": 8, "max_free_size": 50_000, "max_memory_bytes": 8_000_000}
    models = type("Models", (), {"path": folder})
    with running_server(tmp_path_factory.mktemp("server"), models, **settings) as (_, url):
        yield url, f"127.0.0.1:{grpc_port}"


@pytest.fixture
def web(addresses):
    with httpx2.Client(base_url=addresses[0], trust_env=False, timeout=30) as client:
        yield client


def tensors(library, arrays, datatypes=None):
    found = []
    for name, values in arrays.items():
        datatype = (datatypes or {}).get(name, {"f": "FP32", "i": "INT64"}[values.dtype.kind])
        tensor = library.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        found.append(tensor)
    return found


def test_metadata_is_the_signature(web):
    described = web.get("/v2/models/prices").json()
    assert described["inputs"] == [
        {"name": "measures", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "district", "datatype": "INT64", "shape": [-1, 1]},
    ]
    assert described["outputs"] == [{"name": "price", "datatype": "FP32", "shape": [-1, 1]}]
    (values,) = web.get("/v2/models/series").json()["inputs"]
    assert values == {"name": "values", "datatype": "FP32", "shape": [-1, -1, 4]}
    config = web.get("/v2/models/series/config").json()
    assert (config["max_batch_size"], config["input"][0]["dims"], config["output"][1]["dims"]) == (8, [-1, 4], [4])


@pytest.mark.parametrize("library", [triton, triton_grpc], ids=["http", "grpc"])
def test_clients_of_others_get_what_arithmetic_gives(addresses, library, priced, summed):
    client = library.InferenceServerClient(addresses[library is triton_grpc].removeprefix("http://"))
    answer = client.infer("prices", tensors(library, ROWS))
    assert np.allclose(answer.as_numpy("price"), priced(ROWS)["price"], atol=1e-4)
    for length in (1, 5, 300):
        values = {"values": np.random.default_rng(length).normal(size=(2, length, 4)).astype(np.float32)}
        answer = client.infer("series", tensors(library, values))
        assert np.allclose(answer.as_numpy("sums"), summed(values)["sums"], atol=1e-3)
    client.close()


def test_real_numbers_of_any_width(addresses, priced):
    client = triton.InferenceServerClient(addresses[0].removeprefix("http://"))
    for dtype, datatype in ((np.float64, "FP64"), (np.float16, "FP16")):
        rows = {**ROWS, "measures": ROWS["measures"].astype(dtype)}
        answer = client.infer("prices", tensors(triton, rows, {"measures": datatype}))
        assert np.allclose(answer.as_numpy("price"), priced(rows)["price"], atol=1e-4)
    client.close()


MEASURES = {"name": "measures", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
DISTRICT = {"name": "district", "shape": [1, 1], "datatype": "INT64", "data": [2]}
VALUES = {"name": "values", "shape": [1, 2, 4], "datatype": "FP32", "data": [0.5] * 8}


@pytest.mark.parametrize(
    ("inputs", "status", "said"),
    [
        ([MEASURES], 400, "Expected each of the inputs ['measures', 'district'] once, but got ['measures']"),
        ([MEASURES, DISTRICT, {**DISTRICT, "name": "distric"}], 400, "but got ['measures', 'district', 'distric']"),
        ([MEASURES, DISTRICT, DISTRICT], 400, "but got ['measures', 'district', 'district']"),
        ([MEASURES, {**DISTRICT, "datatype": "FP32"}], 400, "Expected 'district' as INT64 of the shape [-1, 1], but"),
        ([MEASURES, {**DISTRICT, "datatype": "INT32"}], 400, "but got 'INT32' of [1, 1]"),
        ([MEASURES, {**DISTRICT, "data": [0.5]}], 400, "Expected 'district' to hold integers of INT64"),
        ([MEASURES, {**DISTRICT, "data": [9]}], 400, "out of data bounds"),
        ([{**MEASURES, "shape": [1, 4], "data": [1] * 4}, DISTRICT], 400, "but got 'FP32' of [1, 4]"),
        ([{**MEASURES, "data": [1, 2, 1e39]}, DISTRICT], 400, "numbers of float32's range"),
        ([{**MEASURES, "data": [1, 2, "3"]}, DISTRICT], 400, "an array of numbers, but got '3' in it"),
        ([{**MEASURES, "shape": [2, 3], "data": [1] * 6}, DISTRICT], 400, "district"),
        ([{**MEASURES, "shape": [0, 3], "data": []}, {**DISTRICT, "shape": [0, 1], "data": []}], 400, "one row"),
        ([{**MEASURES, "shape": [9, 3], "data": [1] * 27}, {**DISTRICT, "shape": [9, 1], "data": [1] * 9}], 413, "8 r"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_expectation(web, inputs, status, said):
    answer = web.post("/v2/models/prices/infer", json={"inputs": inputs})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("shape", "status", "said"),
    [
        ([1, 0, 4], 400, "length"),
        ([1, 2, 5], 400, "of the shape [-1, -1, 4], but got 'FP32' of [1, 2, 5]"),
        ([1, 8], 400, "of the shape [-1, -1, 4]"),
        ([1, 60_000, 4], 400, "Expected a length of at most 50000"),
        ([8, 49_000, 4], 413, "at most 8000000 bytes of memory"),  # 12.5 MB of sums
    ],
)
def test_free_sizes_are_bounded_before_anything_is_computed(web, shape, status, said):
    count = int(np.prod(shape))
    header = {"inputs": [{**VALUES, "shape": shape, "parameters": {"binary_data_size": 4 * count}}]}
    del header["inputs"][0]["data"]
    text = json.dumps(header).encode()
    answer = web.post(
        "/v2/models/series/infer",
        content=text + bytes(4 * count),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


@pytest.mark.parametrize("form", ["json", "bytes", "grpc"])
def test_sizes_beyond_those_of_any_array_are_refused(addresses, web, form):
    tensor = {"name": "values", "shape": [0, 2**62, 4], "datatype": "FP32"}
    if form == "grpc":
        request = triton_grpc.service_pb2.ModelInferRequest(model_name="series")
        request.inputs.add(**tensor)
        with grpc.insecure_channel(addresses[1]) as channel, pytest.raises(grpc.RpcError) as caught:
            triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        said = caught.value.details()
    else:
        more = {"data": []} if form == "json" else {"parameters": {"binary_data_size": 0}}
        text = json.dumps({"inputs": [{**tensor, **more}]})
        headers = {"Inference-Header-Content-Length": str(len(text))} if form == "bytes" else {}
        answer = web.post("/v2/models/series/infer", content=text, headers=headers)
        assert answer.status_code == 400, answer.text
        said = answer.json()["error"]
    assert "Expected 'values' to have the shape of an array" in said


def test_the_memory_of_outputs_counts_for_grpc_too(addresses):
    client = triton_grpc.InferenceServerClient(addresses[1])
    values = np.zeros((4, 30_000, 4), np.float32)  # 1.9 MB, twice in a message, and 1.9 MB of sums
    assert client.infer("series", tensors(triton_grpc, {"values": values})).as_numpy("last").shape == (4, 4)
    with pytest.raises(InferenceServerException, match="at most 8000000 bytes"):
        client.infer("series", tensors(triton_grpc, {"values": np.zeros((6, 30_000, 4), np.float32)}))
    client.close()


def test_the_maximum_of_the_signature_holds(make_series_bundle, connect_to, tmp_path):
    with connect_to(make_series_bundle(tmp_path, most=3)) as client:
        request = {"inputs": [{**VALUES, "shape": [1, 4, 4], "data": [0] * 16}]}
        answer = client.post("/v2/models/series/infer", json=request)
        assert (answer.status_code, "length is at most 3" in answer.json()["error"]) == (400, True), answer.text


def test_requests_of_one_length_share_a_batch_and_get_what_they_get_alone(series_bundle, connect_to, summed):
    started = threading.Barrier(12)

    def ask(client, number):
        length = 3 + number % 2
        values = np.random.default_rng(number).normal(size=(1, length, 4)).astype(np.float32)
        started.wait()
        answer = client.post(
            "/v2/models/series/infer",
            json={"inputs": [{**VALUES, "shape": list(values.shape), "data": values.ravel().tolist()}]},
        ).json()
        sums = np.array(answer["outputs"][0]["data"], np.float32).reshape(values.shape)
        return np.allclose(sums, summed({"values": values})["sums"], atol=1e-5)

    with connect_to(series_bundle, concurrency=1) as client, ThreadPoolExecutor(12) as threads:
        assert all(threads.map(lambda number: ask(client, number), range(12)))


def test_one_bad_value_costs_only_its_own_request(price_bundle, priced):
    from cpt_serving import load_settings
    from cpt_serving.adapters import adapter_of
    from cpt_serving.inference.errors import InvalidRequestError
    from cpt_serving.inference.memory import MemoryBudget

    adapter = adapter_of(price_bundle, load_settings(bundle=price_bundle.path), MemoryBudget(1))
    adapter.load()
    bad = {**ROWS, "district": np.array([[2], [4]])}
    first, second, third = adapter.run([ROWS, bad, ROWS])
    assert isinstance(second, InvalidRequestError)
    for outcome in (first, third):
        assert np.allclose(outcome["price"], priced(ROWS)["price"], atol=1e-4)


def test_classes_without_labels_are_values_and_indices(web):
    outputs = [{"name": "last", "parameters": {"classification": 2}}]
    data = [0, 3, 1, 2]
    answer = web.post(
        "/v2/models/series/infer",
        json={"inputs": [{**VALUES, "shape": [1, 1, 4], "data": data}], "outputs": outputs},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == ["3.0:1", "2.0:3"]
    outputs[0]["name"] = "sums"
    refused = web.post("/v2/models/series/infer", json={"inputs": [VALUES], "outputs": outputs})
    assert (refused.status_code, "'sums' has no classes" in refused.json()["error"]) == (400, True)
