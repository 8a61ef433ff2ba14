"""Requests that are small and would be dear: over a real socket, with the memory of the server's process."""

import gzip
import itertools
import json
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import orjson
import pytest

INFER = "/v2/models/colours/infer"
INDEX = "/v2/repository/index"
MIB = 1024 * 1024
JSON = {"content-type": "application/json"}


def peak_mib(process):
    """The most memory that a process has had since it started, in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory, shared_bundle, running_server, wait_until, get):
    """A server in a process of its own that must not write anywhere, and its memory before the first request."""
    directory = tmp_path_factory.mktemp("server")
    nowhere = {"TMPDIR": "/nonexistent", "TEMP": "/nonexistent", "TMP": "/nonexistent"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in nowhere.items():
            patch.setenv(name, value)
        with running_server(directory, shared_bundle) as (process, url):
            wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
            yield process, url


@pytest.fixture
def ask(server):
    """Asks the server and returns its answer and by how many MiB its peak memory rose."""
    process, url = server

    def send(method, path, **options):
        before = peak_mib(process)
        with httpx2.Client(trust_env=False, timeout=120) as client:
            answer = client.request(method, f"{url}{path}", **options)
        return answer, peak_mib(process) - before

    return send


def tensor(data, shape=(1, 3, 8, 8), datatype="FP32"):
    return orjson.dumps({"inputs": [{"name": "image", "shape": shape, "datatype": datatype, "data": data}]})


def nested(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


MIXED = ["a" * 100_000, *[1] * 3000]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFER, tensor(MIXED)),
        (INFER, tensor([MIXED, MIXED[::-1]])),
        (INFER, tensor([1] * 3000 + ["a" * 100_000])),
        (INFER, tensor(MIXED, (3001,), "UINT8")),
        (INFER, tensor(MIXED, (3001,), "BYTES")),
        (INFER, tensor([[1] * 100_000, *[[1]] * 10_000])),
        (INFER, tensor([{"a": 1}, *[1] * 191])),
        (INFER, tensor([None] * 192)),
        (INFER, tensor([True] * 192)),
        (INFER, tensor([True, *[1] * 191])),
        (INFER, tensor("a" * 100_000)),
        (INFER, tensor([], (100_000,) * 5000)),
        ("/predict", orjson.dumps({"instances": [MIXED]})),
        ("/predict", orjson.dumps({"instances": [[[MIXED]]]})),
        ("/predict", orjson.dumps({"instances": ["a" * 100_000, 1]})),
        ("/predict", orjson.dumps({"images": [1] * 100_000})),
        ("/predict", orjson.dumps({"a" * 1000 + str(index): 1 for index in range(100)})),
        ("/predict", orjson.dumps({"kind": MIXED, "instances": [1]})),
    ],
)
def test_what_is_no_array_of_numbers_costs_little(ask, path, body):
    answer, grown = ask("POST", path, content=body, headers=JSON)
    assert answer.status_code in {400, 413}, answer.text
    assert len(answer.content) < 1500
    assert grown < 64


@pytest.mark.parametrize(
    "number",
    ["9223372036854775808", "18446744073709551615", "18446744073709551616", "1e308", "-1e39", "-9223372036854775809"],
)
def test_numbers_beyond_the_range_are_400_or_rounded_as_float32_does(ask, number):
    data = f"[{number}{',0' * 191}]"
    body = f'{{"inputs": [{{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": {data}}}]}}'
    answer, _ = ask("POST", INFER, content=body, headers=JSON)
    within = abs(float(number)) <= float(np.finfo(np.float32).max)
    assert answer.status_code == (200 if within else 400), answer.text
    for constant in ("NaN", "Infinity", "-Infinity", "1" * 500):
        wrong, _ = ask("POST", INFER, content=body.replace(number, constant), headers=JSON)
        assert wrong.status_code == 400


@pytest.mark.parametrize("depth", [65, 980, 1023, 1024, 5000, 100_000])
@pytest.mark.parametrize(
    "template",
    [
        '{"inputs": [{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": DEEP}]}',
        '{"inputs": DEEP}',
        '{"inputs": [{"name": DEEP, "shape": [1], "datatype": "FP32"}]}',
        '{"inputs": [], "parameters": {"x": DEEP}}',
        '{"\\\\\\"": DEEP}',
    ],
)
def test_deep_nesting_is_400(ask, depth, template):
    for inner in ("1", '"x"', "{}"):
        body = template.replace("DEEP", nested(depth, inner))
        for path in (INFER, "/predict"):
            answer, grown = ask("POST", path, content=body, headers=JSON)
            assert answer.status_code == 400, answer.text
            assert grown < 32


def test_brackets_in_texts_are_not_nesting(ask):
    for text in ("[" * 1000, '\\"' + "{" * 1000, "\\\\" + "[" * 1000 + '\\\\\\"['):
        body = f'{{"id": "{text}", "inputs": [{tensor([0.0] * 192).decode()[11:-2]}]}}'
        answer, _ = ask("POST", INFER, content=body, headers=JSON)
        assert answer.status_code == 200, answer.text
        assert answer.json()["id"] == json.loads(f'"{text}"')


@pytest.mark.parametrize("path", [INDEX, "/v2/repository/models/colours/load", "/v2/repository/models/colours/unload"])
def test_control_bodies_are_small(ask, path):
    large = b'{"ready":[' + b"[]," * MIB + b"[]]}"
    for content in (large, iter([large[start : start + 65536] for start in range(0, len(large), 65536)])):
        answer, grown = ask("POST", path, content=content, headers=JSON)
        # Of a server without administrators' keys the other two are closed altogether.
        assert answer.status_code == (413 if path == INDEX else 403)
        assert grown < 32


def test_control_bodies_of_another_kind_are_400(ask):
    for body in (
        b"[]",
        b'{"ready": [[[]]]}',
        b'{"ready": 1}',
        nested(900).encode(),
        b'{"ready": "' + b"x" * 9000 + b'"}',
    ):
        answer, _ = ask("POST", INDEX, content=body)
        assert answer.status_code == 400
        assert len(answer.content) < 500
    assert ask("POST", INDEX, content=b"")[0].json()[0]["name"] == "colours"
    assert ask("POST", INDEX, content=b'{"ready": true}')[0].json()[0]["state"] == "READY"


def test_json_has_a_limit_of_its_own(ask):
    padding = b" " * (9 * MIB)
    json_only = tensor([0.0] * 192) + padding
    answer, grown = ask("POST", INFER, content=json_only, headers=JSON)
    assert answer.status_code == 413
    assert "8388608 bytes" in answer.json()["error"]
    assert grown < 24
    # The same size is fine as bytes, here of more rows than may be in one request.
    count = 9 * MIB // 768
    image = {"name": "image", "shape": [count, 3, 8, 8], "datatype": "FP32"}
    head = orjson.dumps({"inputs": [image | {"parameters": {"binary_data_size": 768 * count}}]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    rows, _ = ask("POST", INFER, content=head + bytes(768 * count), headers=headers)
    assert "rows in one request" in rows.json()["error"]
    hidden, _ = ask("POST", INFER, content=json_only, headers={"Inference-Header-Content-Length": str(len(json_only))})
    assert (hidden.status_code, "bytes of JSON" in hidden.text) == (413, True)
    packed, grown = ask("POST", INFER, content=gzip.compress(json_only), headers={**JSON, "content-encoding": "gzip"})
    assert packed.status_code == 413
    assert grown < 32


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'{"":0},', b'[""],', b'"ab",'])
def test_many_lists_and_objects_are_refused_before_they_are_made(ask, piece):
    body = b'{"inputs": [' + piece * (8_000_000 // len(piece)) + b"1]}"
    answer, grown = ask("POST", INFER, content=body, headers=JSON)
    assert answer.status_code == 413
    assert "values" in answer.json()["error"]
    assert grown < 24


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'{"":0},', b"[[[[[[[[]]]]]]]],"])
def test_so_are_as_many_as_stay_below_the_number_of_values(ask, piece):
    body = b'{"inputs": [' + piece * 300_000 + b"1]}"
    answer, grown = ask("POST", INFER, content=body, headers=JSON)
    assert answer.status_code == 413
    assert "lists and objects" in answer.json()["error"]
    assert grown < 24


def test_health_answers_while_large_json_is_read(server):
    _, url = server
    body = tensor([0.12345] * 900_000)
    assert len(body) < 8 * MIB
    statuses, done = [], threading.Event()

    def send():
        with httpx2.Client(trust_env=False, timeout=120) as client:
            for _ in range(3):
                statuses.append(client.post(f"{url}{INFER}", content=body, headers=JSON).status_code)
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    answered = 0
    with httpx2.Client(trust_env=False, timeout=60) as client:
        while not done.is_set():
            assert client.get(f"{url}/health/live").status_code == 200
            answered += 1
    thread.join()
    assert statuses == [400] * 3
    assert answered > 3


def test_memory_for_all_bodies_is_bounded(tmp_path, shared_bundle, running_server, wait_until, get):
    with running_server(tmp_path, shared_bundle, max_memory_bytes=8 * MIB, body_timeout_s=20) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        before = peak_mib(process)
        address = urlsplit(url)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {4 * MIB}\r\n\r\n"
        connections = [socket.create_connection((address.hostname, address.port), timeout=30) for _ in range(2)]
        for connection in connections:
            connection.sendall(head.encode() + bytes(4 * MIB - 1))

        def late():
            return httpx2.post(
                f"{url}/predict", content=bytes(4 * MIB), headers={"content-type": "image/png"}, trust_env=False
            )

        # All but two bytes are taken once the server has read what was sent.
        wait_until(lambda: late().status_code == 503)
        assert late().headers["retry-after"] == "1"
        assert get(f"{url}/health/ready").status_code == 200
        assert peak_mib(process) - before < 48
        for connection in connections:
            connection.close()
        # Those that left give back what they had.
        wait_until(lambda: late().status_code == 400)
        big = httpx2.post(
            f"{url}/predict", content=bytes(9 * MIB), headers={"content-type": "image/png"}, trust_env=False
        )
        assert big.status_code == 413


def answer_of(connection):
    try:
        return connection.recv(4096)
    except OSError:
        return b""


def test_a_body_cannot_hold_its_place_by_dripping(tmp_path, shared_bundle, running_server, wait_until, get):
    with running_server(tmp_path, shared_bundle, body_timeout_s=0.5) as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {8 * MIB}\r\n\r\n"
            # A large part at once buys no time for the rest.
            connection.sendall(head.encode() + bytes(7 * MIB))
            assert answer_of(connection).startswith(b"HTTP/1.1 408")


def test_endless_empty_members_of_gzip_are_400(ask):
    headers = {**JSON, "content-encoding": "gzip"}
    answer, _ = ask("POST", INFER, content=gzip.compress(b"") * 300_000, headers=headers)
    assert (answer.status_code, "4096 members" in answer.text) == (400, True)
    many = gzip.compress(b"") * 4000 + gzip.compress(tensor([0.0] * 192))
    assert ask("POST", INFER, content=many, headers=headers)[0].status_code == 200


def form(parts, boundary="X"):
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"
        for name, extra, data in parts
    )
    return body + f"--{boundary}--\r\n".encode(), {"content-type": f"multipart/form-data; boundary={boundary}"}


def test_large_forms_need_no_disk(ask, png):
    # PNG files may have bytes after their end; this makes large uploads of small images.
    file = png("lime") + bytes(3 * MIB)
    answer, grown = ask("POST", "/predict", files=[("files", ("a.png", file)), ("files", ("b.png", file))])
    assert answer.status_code == 200, answer.text
    assert [each[0]["label"] for each in answer.json()["predictions"]] == ["green", "green"]
    assert grown < 48


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([("file", "", b"x")] * 1000, 400),
        ([(f"f{index}", "", b"x") for index in range(1000)], 400),
        ([("file", '; filename="a"', b"")] * 10_000, 413),
        ([("file", "", b"x" * (2 * MIB))], 400),
        ([("x" * 100_000, '; filename="a"', b"x")], 400),
        ([("file", '; filename="' + "y" * 100_000 + '"', b"x")], 400),
        ([("file", '; filename="a"', b"\r" * (4 * MIB))], 400),
        ([("file", '; filename="a"', b"\r\n--" * MIB)], 400),
    ],
)
def test_forms_of_many_parts_and_odd_ones_are_refused(ask, parts, status):
    body, headers = form(parts)
    answer, grown = ask("POST", "/predict", content=body, headers=headers)
    assert answer.status_code in {status, 400}, answer.text
    assert len(answer.content) < 1500
    assert grown < 64


def test_base64_in_many_pieces_costs_little(ask):
    for text in ("aa " * 2_000_000, "é" * 1000, "aa\\n" * 1000):
        answer, grown = ask("POST", "/predict", content=f'{{"image": "{text}"}}'.encode(), headers=JSON)
        assert answer.status_code == 400
        assert len(answer.content) < 500
        assert grown < 64


def test_parts_with_many_headers_are_refused(ask):
    head = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n' + b"a:\r\n" * MIB
    answer, grown = ask(
        "POST",
        "/predict",
        content=head + b"\r\nx\r\n--X--\r\n",
        headers={"content-type": "multipart/form-data; boundary=X"},
    )
    assert answer.status_code == 400
    assert grown < 64


@pytest.mark.parametrize("boundary", ["", '"', "x" * 5000, "\xff"])
def test_forms_with_odd_boundaries_are_400(ask, boundary):
    headers = {"content-type": f"multipart/form-data; boundary={boundary}".encode("latin-1")}
    answer, _ = ask("POST", "/predict", content=b"--x\r\n\r\n", headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/", "/v2", "/v2/models/colours", "/health/live", "/metrics", "/docs", "/openapi.json", "/page/app.js", "/models"],
)
def test_head_is_get_without_a_body(ask, path):
    got, asked = ask("GET", path)[0], ask("HEAD", path)[0]
    assert (asked.status_code, asked.content) == (got.status_code, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert asked.headers["content-length"] == got.headers["content-length"]
    assert ask("HEAD", "/predict")[0].status_code == 405
    assert ask("HEAD", "/nowhere")[0].status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/predict?topk=3", "did you mean top_k?"),
        ("POST", "/predict?top_k=3&modle=colours", "did you mean model?"),
        ("POST", "/models/colours/predict?model=colours", "'model'"),
        ("POST", f"{INFER}?timeout=3", "no query parameters"),
        ("GET", "/evidence?modell=colours", "did you mean model?"),
        ("GET", "/v2?version=1", "no query parameters"),
        ("GET", "/metrics?" + "x" * 5000 + "=1", "no query parameters"),
    ],
)
def test_query_parameters_that_nobody_reads_are_400(ask, method, path, hint):
    answer, _ = ask(method, path)
    assert answer.status_code == 400
    assert hint in answer.json()["error"]
    assert len(answer.content) < 500
    assert ask("GET", "/?utm_source=x")[0].status_code == 200


def test_the_budget_is_given_back_whatever_happens(tmp_path, shared_bundle, png, running_server, wait_until, get):
    with running_server(tmp_path, shared_bundle, max_memory_bytes=MIB) as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        wrong = {"content": bytes(600_000), "headers": {"content-type": "image/png"}}
        right = {"files": {"file": png("lime") + bytes(300_000)}}
        with httpx2.Client(trust_env=False, timeout=60) as client:
            for options, expected in itertools.islice(itertools.cycle([(wrong, 400), (right, 200)]), 40):
                assert client.post(f"{url}/predict", **options).status_code == expected
