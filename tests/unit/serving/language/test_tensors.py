import json

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from cpt_serving import load_settings
from cpt_serving.adapters import adapter_of
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.threads import Work
from cpt_serving.oip.schemas import InferInput, InferRequest
from cpt_serving.web.errors import RequestError


@pytest.fixture(scope="module")
def server(language_bundle, running_server, tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server"), language_bundle, generations=2) as (_, url):
        yield url


@pytest.fixture
def client(server):
    client = triton.InferenceServerClient(server.removeprefix("http://"))
    yield client
    client.close()


def tensor(name, values, datatype, *, binary=True):
    entry = triton.InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values, binary_data=binary)
    return entry


def test_metadata_names_tokens_and_state(client):
    described = client.get_model_metadata("bigram")
    assert [(entry["name"], entry["datatype"], entry["shape"]) for entry in described["inputs"]] == [
        ("input_ids", "INT64", [-1, -1]),
        ("seen", "FP32", [-1, 8]),
        ("past", "INT64", [-1, -1]),
    ]
    assert [entry["name"] for entry in described["outputs"]] == ["logits", "seen_after", "present"]
    assert client.get_model_config("bigram")["max_batch_size"] == 256


@pytest.mark.parametrize("binary", [True, False])
def test_state_goes_round_through_the_client(client, logits_of, binary):
    tokens = [2, 3, 4, 5, 0, 2, 3]
    seen, past = np.zeros((1, 8), np.float32), np.zeros((1, 0), np.int64)
    rows = []
    for part in ([2, 3, 4], [5], [0, 2, 3]):
        inputs = [tensor("input_ids", np.array([part]), "INT64", binary=binary)]
        if rows:
            inputs += [tensor("seen", seen, "FP32"), tensor("past", past, "INT64", binary=binary)]
        names = ("logits", "seen_after", "present")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        answer = client.infer("bigram", inputs, outputs=outputs)
        logits, seen, past = (answer.as_numpy(name) for name in names)
        rows.append(logits[0])
    np.testing.assert_allclose(np.concatenate(rows), logits_of(tokens), atol=1e-5)
    assert past.tolist() == [tokens]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([("seen", np.zeros((1, 8), np.float32), "FP32")], "input_ids"),
        ([("input_ids", np.array([[8]]), "INT64")], "0..7"),
        ([("input_ids", np.array([[1]], np.int32), "INT32")], "INT64"),
        ([("input_ids", np.array([[1]]), "INT64"), ("seen", np.zeros((1, 8), np.float32), "FP32")], "all or none"),
        (
            [
                ("input_ids", np.array([[1]]), "INT64"),
                ("seen", np.zeros((2, 8), np.float32), "FP32"),
                ("past", np.zeros((2, 0), np.int64), "INT64"),
            ],
            "N is 1 in other inputs",
        ),
        ([("input_ids", np.array([[1]]), "INT64"), ("other", np.zeros((1, 1)), "FP64")], "'other'"),
    ],
)
def test_wrong_tensors_are_refused(client, inputs, said):
    with pytest.raises(InferenceServerException) as error:
        client.infer("bigram", [tensor(*entry) for entry in inputs])
    assert said in str(error.value)


def test_what_was_read_counts_towards_the_context(make_language_bundle, tmp_path):
    bundle = make_language_bundle(tmp_path, context=4)
    adapter = adapter_of(bundle, load_settings(bundle=bundle.path), MemoryBudget(1))

    def read(past, tokens):
        inputs = [
            InferInput(name=name, datatype=datatype, shape=[1, length]).attach(memoryview(bytes(size * length)))
            for name, length, datatype, size in (
                ("past", past, "INT64", 8),
                ("seen", 8, "FP32", 4),
                ("input_ids", tokens, "INT64", 8),
            )
        ]
        return adapter.decode(InferRequest(inputs=inputs), Work())

    assert read(3, 1)["past"].shape == (1, 3)
    with pytest.raises(RequestError, match=r"at most 4 of length \+ past, the model's context, but got 5"):
        read(3, 2)


def test_more_logits_than_there_is_memory_for_are_refused_before_they_are_made(language_bundle, connect_to):
    with connect_to(language_bundle, max_memory_bytes=65_536) as small:
        for length, status in ((200, 200), (2000, 413)):
            header = {
                "inputs": [
                    {"name": "input_ids", "datatype": "INT64", "shape": [1, length],
                     "parameters": {"binary_data_size": 8 * length}}
                ],
                "parameters": {"binary_data_output": True},
            }  # fmt: skip
            text = json.dumps(header).encode()
            answer = small.post(
                "/v2/models/bigram/infer",
                content=text + bytes(8 * length),
                headers={"Inference-Header-Content-Length": str(len(text))},
            )
            assert answer.status_code == status, answer.text
