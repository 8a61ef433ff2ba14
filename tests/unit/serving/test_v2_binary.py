"""Tensors as bytes, over HTTP: what clients send, and what damaged requests get."""

import gzip
import zlib

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INFER = "/v2/models/colours/infer"
ROWS = np.random.default_rng(5).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def expected(reference_logits):
    return reference_logits(ROWS)


def encode(raw, *, shape=ROWS.shape, datatype="FP32", padding=0, **request):
    tensor = {
        "name": "image",
        "shape": list(shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    header = orjson.dumps({"inputs": [tensor], **request}) + b" " * padding
    return header + raw, {LENGTH: str(len(header))}


def post(client, content, headers):
    return client.post(INFER, content=content, headers=headers)


def decode(response):
    assert response.status_code == 200, response.text
    length = int(response.headers[LENGTH])
    answer = orjson.loads(response.content[:length])
    (output,) = answer["outputs"]
    raw = response.content[length:]
    assert len(raw) == output["parameters"]["binary_data_size"]
    return output, raw


@pytest.mark.parametrize("padding", range(4))
def test_bytes_in_and_out_wherever_the_json_ends(client, expected, padding):
    content, headers = encode(ROWS.tobytes(), padding=padding, parameters={"binary_data_output": True})
    output, raw = decode(post(client, content, headers))
    assert output["shape"] == [3, 3]
    assert np.array_equal(np.frombuffer(raw, "<f4").reshape(3, 3), expected)


def test_bytes_in_and_json_out_and_the_other_way_round(client, expected):
    (output,) = post(client, *encode(ROWS.tobytes())).json()["outputs"]
    assert np.array_equal(np.float32(output["data"]), expected.ravel())
    tensor = {"name": "image", "shape": list(ROWS.shape), "datatype": "FP32", "data": ROWS.ravel().tolist()}
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    _, raw = decode(client.post(INFER, json={"inputs": [tensor], "outputs": outputs}))
    assert raw == expected.tobytes()


def test_an_output_decides_for_itself(client):
    outputs = [{"name": "logits", "parameters": {"binary_data": False}}]
    response = post(client, *encode(ROWS.tobytes(), outputs=outputs, parameters={"binary_data_output": True}))
    assert LENGTH not in response.headers
    assert "data" in response.json()["outputs"][0]


@pytest.mark.parametrize(("datatype", "dtype"), [("FP64", "<f8"), ("FP16", "<f2")])
def test_other_floats_are_converted(client, datatype, dtype):
    values = ROWS.astype(dtype)
    (output,) = post(client, *encode(values.tobytes(), datatype=datatype)).json()["outputs"]
    (same,) = post(client, *encode(values.astype("<f4").tobytes())).json()["outputs"]
    assert output["data"] == same["data"]


def test_classes_as_bytes(client):
    outputs = [{"name": "logits", "parameters": {"binary_data": True, "classification": 9}}]
    output, raw = decode(post(client, *encode(ROWS.tobytes(), outputs=outputs)))
    assert (output["datatype"], output["shape"]) == ("BYTES", [3, 3])
    texts = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    assert len(texts) == 9
    assert {text.split(":")[2] for text in texts} == {"red", "green", "blue"}


@pytest.mark.parametrize("values", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_400(client, values):
    rows = ROWS.copy()
    rows[1, 2, 3, 4] = values
    assert "finite" in refusal(post(client, *encode(rows.tobytes())))


def test_numbers_beyond_float32_are_400(client):
    assert "finite" in refusal(post(client, *encode(np.full(ROWS.shape, 1e300).tobytes(), datatype="FP64")))


def in_members(content):
    """gzip as block-wise writers make it: several members one after the other."""
    return b"".join(gzip.compress(content[start : start + 5000]) for start in range(0, len(content), 5000))


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", in_members),
        ("gzip", lambda content: gzip.compress(content) + bytes(7)),  # padding, as tapes have it
        ("deflate", zlib.compress),
        ("identity, gzip", gzip.compress),
    ],
)
def test_compressed_both_ways(client, expected, coding, pack):
    rows = np.tile(ROWS, (80, 1, 1, 1))
    content, headers = encode(rows.tobytes(), shape=rows.shape, parameters={"binary_data_output": True})
    response = post(client, pack(content), headers | {"Content-Encoding": coding, "Accept-Encoding": "br, gzip;q=0.5"})
    assert (response.headers["content-encoding"], response.headers["vary"]) == ("gzip", "Accept-Encoding")
    _, raw = decode(response)
    assert raw == np.tile(expected, (80, 1)).tobytes()


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0", "br, gzip; q=0.000, deflate"])
def test_nothing_is_compressed_that_the_client_does_not_want(client, accepted):
    rows = np.tile(ROWS, (80, 1, 1, 1))
    content, headers = encode(rows.tobytes(), shape=rows.shape)
    response = post(client, content, headers | {"Accept-Encoding": accepted})
    assert response.status_code == 200
    assert "content-encoding" not in response.headers


def test_bombs_are_413_and_damaged_bodies_400(shared_bundle, connect_to):
    with connect_to(shared_bundle, max_body_bytes=100_000) as client:
        content, headers = encode(ROWS.tobytes())
        headers |= {"Content-Encoding": "gzip"}
        bomb = gzip.compress(bytes(100_001))
        assert len(bomb) < 200
        assert "100000 bytes decompressed" in refusal(post(client, bomb, headers), 413)
        packed = gzip.compress(content)
        for wrong in (packed[:-1], packed + b"x", b"", content, packed[:20] + b"\0" + packed[21:]):
            refusal(post(client, wrong, headers))
        assert post(client, packed, headers).status_code == 200
        twice = gzip.compress(packed)  # a second coding lets a few hundred bytes stand for megabytes
        assert "gzip, gzip" in refusal(post(client, twice, headers | {"Content-Encoding": "gzip, gzip"}), 415)
        many = b"".join([gzip.compress(bytes(1000))] * 101)
        assert "decompressed" in refusal(post(client, many, headers), 413)
        refusal(post(client, packed, headers | {"Content-Encoding": ",".join(["gzip"] * 9)}), 415)
        response = post(client, packed, headers | {"Content-Encoding": "br"})
        assert response.headers["accept-encoding"] == "gzip, deflate"
        refusal(response, 415)


@pytest.mark.parametrize("length", ["-1", "1.5", "x", "", "99999999", "9" * 30, "²"])
def test_wrong_lengths_of_the_json_are_400(client, length):
    content, _ = encode(ROWS.tobytes())
    assert LENGTH in refusal(post(client, content, {LENGTH: length.encode()}))


def test_contradictions_are_400(client):
    content, headers = encode(ROWS.tobytes())
    assert "binary_data_size" in refusal(post(client, content + b"more", headers))
    header = orjson.loads(content[: int(headers[LENGTH])])
    header["inputs"][0]["data"] = [1.0]
    text = orjson.dumps(header)
    assert "got both" in refusal(post(client, text + ROWS.tobytes(), {LENGTH: str(len(text))}))
    header["inputs"][0]["parameters"] = {}
    text = orjson.dumps(header)
    assert "without binary_data_size" in refusal(post(client, text + b"more", {LENGTH: str(len(text))}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_is_a_server_error(client, data):
    """Any corruption of the lengths, the sizes, the shape or the bytes gets a 400, and a right request its logits."""
    rows = data.draw(st.integers(1, 3))
    damage = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "shape": st.lists(st.sampled_from([0, 1, 2, 3, 8, 64, -1, 2**40, 2**63]), max_size=70),
                "datatype": st.sampled_from(["FP64", "FP16", "UINT8", "INT8", "BOOL", "BYTES", "X", ""]),
                "size": st.integers(-8, 4096) | st.none() | st.text(max_size=2),
                "header": st.integers(-2, 5000) | st.none(),
                "cut": st.integers(0, 3000),
                "flip": st.integers(0, 2000),
            },
        )
    )
    raw = ROWS[:rows].tobytes()
    tensor = {
        "name": "image",
        "shape": damage.get("shape", [rows, 3, 8, 8]),
        "datatype": damage.get("datatype", "FP32"),
        "parameters": {"binary_data_size": damage.get("size", len(raw))},
    }
    text = orjson.dumps({"inputs": [tensor]})
    content = bytearray(text + raw)
    if "flip" in damage:
        content[damage["flip"] % len(content)] ^= 0xFF
    if "cut" in damage:
        del content[damage["cut"] :]
    length = damage.get("header", len(text))
    response = post(client, bytes(content), {} if length is None else {LENGTH: str(length)})
    assert response.status_code in {200, 400, 413}, response.text
    if response.status_code == 200:
        assert response.json()["outputs"][0]["shape"][1] == 3
    else:
        refusal(response, response.status_code)
    if not damage:
        assert response.status_code == 200


def refusal(response, status=400):
    content = response.json()
    assert (response.status_code, set(content)) == (status, {"error", "request_id"}), content
    assert content["error"].startswith("Expected")
    return content["error"]


def test_a_body_without_json_is_rows_and_answered_in_bytes(client, expected):
    _, raw = decode(post(client, ROWS.tobytes(), {LENGTH: "0"}))
    assert raw == expected.tobytes()


@pytest.mark.parametrize("content", [b"", ROWS.tobytes()[:-1]], ids=["empty", "cut"])
def test_a_body_without_json_has_whole_rows(client, content):
    response = post(client, content, {LENGTH: "0"})
    assert response.status_code == 400
    assert "768 bytes per row of FP32 [3, 8, 8]" in response.json()["error"]
