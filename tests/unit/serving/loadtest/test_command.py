import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from cpt_cli.main import main


def run(capsys, *words):
    code = main(["load-test", *(str(word) for word in words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_result_is_one_json_object(capsys, server):
    code, stdout, _ = run(capsys, server[0], "--clients", "1,3", "--requests", 12, "--warm-up", 0, "--json")
    document = json.loads(stdout)
    assert code == 0
    assert [(level["clients"], level["requests"], level["errors"]) for level in document["levels"]] == [
        (1, 12, {}), (3, 12, {}),
    ]  # fmt: skip
    assert not document["interrupted"]


def test_people_get_a_table_and_a_plot(capsys, server, tmp_path, png):
    (tmp_path / "red.png").write_bytes(png("red"))
    words = ("--clients", 2, "--seconds", 0.2, "--warm-up", 0, "--image", tmp_path / "red.png")
    code, stdout, stderr = run(capsys, server[0], *words, "--plot", tmp_path / "latency.png")
    assert code == 0
    assert "image files to /predict" in stdout
    assert "p99 ms" in stdout
    assert "latency.png" in stderr
    with Image.open(tmp_path / "latency.png") as plot:
        assert plot.width > 300
    assert json.loads((tmp_path / "latency.json").read_text())[0]["clients"] == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--clients", "none"], 2, "numbers above 0"),
        (["--header", "nonsense"], 2, "NAME:VALUE"),
        (["--image", "missing.png"], 5, "missing.png"),
        (["--model", "other"], 2, "404"),
        (["--plot", "latency.txt"], 2, ".png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(capsys, server, words, code, message):
    found, _, stderr = run(capsys, server[0], *words)
    assert found == code
    assert message in stderr


def test_images_go_to_predict_only(capsys, server, tmp_path, png):
    (tmp_path / "red.png").write_bytes(png("red"))
    code, _, stderr = run(capsys, server[0], "--image", tmp_path / "red.png", "--protocol", "binary")
    assert code == 2
    assert "--image" in stderr


def test_a_server_that_refuses_everything_is_an_error_with_its_words(capsys, server, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    words = ("--image", tmp_path / "notes.txt", "--clients", 1, "--requests", 3, "--warm-up", 0)
    code, _, stderr = run(capsys, server[0], *words)
    assert code == 1
    assert "status 400: Expected an image file" in stderr


def test_some_failures_are_a_warning(capsys, scripted):
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    busy = b'HTTP/1.1 429 No\r\nContent-Length: 16\r\n\r\n{"error":"full"}'
    metadata = json.dumps(
        {
            "name": "m", "platform": "p", "outputs": [],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        }
    ).encode()  # fmt: skip
    first = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(metadata), metadata)
    with scripted(lambda number: first if number == 0 else busy if number % 4 == 0 else good) as (url, _):
        words = ("--model", "m", "--clients", 1, "--requests", 12, "--warm-up", 0)
        code, stdout, stderr = run(capsys, url, *words)
    assert code == 0
    assert "3 times status 429: full" in stderr
    assert "requests/s" in stdout


def test_no_server_is_a_data_error(capsys):
    code, _, stderr = run(capsys, "http://127.0.0.1:1")
    assert code == 5
    assert "cpt serve" in stderr


def test_ctrl_c_shows_what_was_measured(server):
    process = subprocess.Popen(
        [sys.executable, "-m", "cpt_cli", "load-test", server[0], "--seconds", "60", "--warm-up", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rows = server[1].state.service.metrics.rows.labels("colours", "1")
    before = rows._value.get()
    for _ in range(600):
        if rows._value.get() > before + 20 or process.poll() is not None:
            break
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    document = json.loads(stdout)
    assert process.returncode == 130
    assert document["interrupted"]
    assert document["levels"][0]["requests"] > 0
    assert "interrupted" in stderr
