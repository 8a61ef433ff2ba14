"""Small requests whose images would cost much, against a real server: they are answered in time, and cost little."""

import base64
import gzip
import io
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from cpt_deploy.bundle import Preprocessing, write_bundle


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, bundle_contents):
    """A bundle that resizes to 256 before it crops; the network itself is small."""
    preprocessing = Preprocessing(3, (8, 8), (0.5,) * 3, (0.5,) * 3, resize=256)
    contents = bundle_contents()
    contents = replace(contents, processor=replace(contents.processor, preprocessing=preprocessing))
    return write_bundle(tmp_path_factory.mktemp("photographs") / "bundle", contents=contents)


@pytest.fixture
def server(tmp_path, photographs, running_server, wait_until, get):
    with running_server(tmp_path, photographs, concurrency=1, access_log=False) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        yield process, url


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gray_png(width, height):
    """A black gray PNG, written without an image of that size in memory."""
    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def post(url, milliseconds=None, **request):
    headers = {} if milliseconds is None else {"X-Request-Timeout-Ms": str(milliseconds)}
    with httpx2.Client(trust_env=False, timeout=120) as client:
        return client.post(f"{url}/predict", headers=headers, **request)


def peak_mib(process):
    """The most memory that a process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Liveness:
    """Asks `/health/live` on a connection of its own; the longest wait is what a probe would have waited."""

    def __init__(self, url):
        self._url, self._stop, self.asked = url, threading.Event(), 0
        self._thread = threading.Thread(target=self._ask)

    def _ask(self):
        with httpx2.Client(trust_env=False, timeout=30) as client:
            while not self._stop.is_set():
                assert client.get(f"{self._url}/health/live").status_code == 200
                self.asked += 1
                time.sleep(0.01)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_strips_of_a_million_pixels_are_scaled_only_where_the_crop_is(server):
    process, url = server
    strip = gray_png(1, 1 << 20)
    assert len(strip) < 2200
    before = peak_mib(process)
    body = {"images": [base64.b64encode(strip).decode()] * 16}
    with Liveness(url) as liveness:
        # Scaled as a whole each would be 256 x 268,435,456.
        answer = post(url, json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == 16
    assert liveness.asked > 2
    assert peak_mib(process) - before < 60
    late = post(url, 1, json=body)
    assert (late.status_code, "deadline" in late.json()["error"]) == (504, True)


def test_pixels_of_extreme_proportions_are_charged_and_scaled_likewise(server):
    process, url = server
    before = peak_mib(process)
    values = np.zeros((2, 1, 300_000, 1), np.uint8)
    tensor = {"name": "image", "shape": list(values.shape), "datatype": "UINT8", "data": values.ravel().tolist()}
    with httpx2.Client(trust_env=False, timeout=120) as client:
        answer = client.post(f"{url}/v2/models/colours/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["shape"] == [2, 3]
    assert peak_mib(process) - before < 150  # the JSON itself, as Python objects


def test_a_small_image_keeps_its_deadline_behind_large_ones_and_who_leaves_frees_the_decoder(
    server, png, wait_until, get
):
    _, url = server
    large = gray_png(6000, 6000)  # 36 megapixels, an eighth of a second or so each
    body = {"images": [base64.b64encode(large).decode()] * 8}
    with ThreadPoolExecutor(6) as pool, Liveness(url) as liveness:
        heavy = [pool.submit(post, url, 20_000, json=body) for _ in range(4)]
        wait_until(lambda: 'cpt_serve_queued_requests{model="colours",version="1"} 4.0' in get(f"{url}/metrics").text)
        late = post(url, 50, content=png())
        assert late.status_code == 504
        # The others are still under way: the answer did not wait for a decoder.
        assert not all(each.done() for each in heavy)
        with pytest.raises(httpx2.ReadTimeout), httpx2.Client(trust_env=False, timeout=0.3) as client:
            client.post(f"{url}/predict", content=large)
        wait_until(lambda: 'reason="cancelled",version="1"} 1.0' in get(f"{url}/metrics").text)
        assert {each.result().status_code for each in heavy} <= {200, 504}
    assert liveness.asked > 10
    assert post(url, content=png()).status_code == 200
    text = get(f"{url}/metrics").text
    assert 'cpt_serve_queued_rows{model="colours",version="1"} 0.0' in text
    assert 'cpt_serve_inference_failures_total{model="colours",reason="deadline",version="1"}' in text


def test_waiting_for_a_decoder_is_bounded_by_the_queue(tmp_path, photographs, running_server, wait_until, get):
    large = {"images": [base64.b64encode(gray_png(6000, 6000)).decode()] * 8}
    with running_server(tmp_path, photographs, concurrency=1, queue_rows=16) as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        with ThreadPoolExecutor(8) as pool:
            answers = [each.result() for each in [pool.submit(post, url, 20_000, json=large) for _ in range(8)]]
        statuses = sorted(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 429, 504}
        assert statuses.count(429) >= 1
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "queue of 16 rows" in refused.json()["error"]
        assert int(refused.headers["Retry-After"]) >= 1


def test_decoding_of_several_requests_keeps_within_its_memory(tmp_path, photographs, running_server, wait_until, get):
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "PNG")
    with running_server(tmp_path, photographs, decode_bytes=130_000_000) as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        before = peak_mib(process)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: post(url, content=file.getvalue()), range(6)))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert peak_mib(process) - before < 190  # each takes 61 MiB decoded, and as much to be turned
        # What needs more than all of it can never be decoded.
        file = io.BytesIO()
        Image.new("RGBA", (5000, 4000), (1, 2, 3, 4)).save(file, "PNG")
        refused = post(url, content=file.getvalue())
        assert (refused.status_code, "130000000 bytes" in refused.json()["error"]) == (413, True)


def test_a_format_whose_decoder_stops_all_threads_is_taken_only_small(server):
    _, url = server
    for side, status in ((200, 200), (1600, 413)):
        file = io.BytesIO()
        Image.new("L", (side, side)).save(file, "JPEG2000")
        assert post(url, content=file.getvalue()).status_code == status


PROGRAM = """
import warnings
from cpt_serving import load_settings, run
if __name__ == "__main__":
    warnings.resetwarnings()  # in other tests they are errors
    run(load_settings(), on_listening=lambda url: print(url, flush=True))
"""


def run_lengths(side, data):
    """A BMP of run lengths, which Pillow decodes in Python."""
    head = struct.pack("<2sIHHI", b"BM", 1078 + len(data), 0, 0, 1078)
    return head + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0) + bytes(1024) + data


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_what_is_decoded_in_python_is_taken_only_small(server):
    _, url = server
    runs, text = run_lengths(64, b"\x40\x01\0\0" * 64), b"7 " * 4096
    for ordinary in (runs, b"P2 64 64 255\n" + text, b"P5 64 64 99\n" + b"7" * 4096):
        assert post(url, content=ordinary).status_code == 200
    for costly in (
        run_lengths(64, b"\x01\0" * 100_000),
        run_lengths(2000, b"\x01\x01\0\0"),
        b"P2 64 64 255\n" + b"#\n" * 80_000 + text,
        b"P5 500 500 99\n" + b"7" * 250_000,
    ):
        refused = post(url, content=costly)
        assert (refused.status_code, "slow to decode" in refused.json()["error"]) == (413, True)


def test_a_header_of_many_blocks_takes_little_memory(server):
    process, url = server
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    start = gif.index(b"\x2c", 13)
    before = peak_mib(process)
    with httpx2.Client(trust_env=False, timeout=120) as client:
        packed = gzip.compress(gif[:start] + b"\x21\xfe\x01a\0" * 3_000_000 + gif[start:])
        refused = client.post(f"{url}/predict", content=packed, headers={"Content-Encoding": "gzip"})
    assert (refused.status_code, "too many blocks" in refused.json()["error"]) == (400, True)
    assert peak_mib(process) - before < 100  # the body itself, compressed and not


def overlapping_tags(count, size):
    """A TIFF whose tags have the same bytes for values, of which Pillow warns."""
    tags = {256: (4, 4), 257: (4, 4), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1), 278: (4, 4)}
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items()]
    entries += [struct.pack("<HHII", 1000 + index, 7, size, 8) for index in range(count)]
    return (struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries)).ljust(size + 8, b"\0")


def test_damaged_images_leave_the_log_in_json_and_short(tmp_path, photographs, running_server, wait_until, get):
    fax = bytearray(encoded(Image.effect_noise((64, 2000), 50).convert("1"), "TIFF", compression="group3"))
    fax[300:-200:7] = b"\x55" * len(fax[300:-200:7])
    program = tmp_path / "warning.py"
    program.write_text(PROGRAM)
    with running_server(tmp_path, photographs, program, concurrency=1, log_format="json") as (process, url):
        wait_until(lambda: get(f"{url}/health/ready").status_code == 200)
        for image in (overlapping_tags(2000, 30_000), bytes(fax)):
            # Nobody reads stderr meanwhile: its pipe takes 64 KiB.
            assert post(url, content=image).status_code in {200, 400}
        process.terminate()
        _, stderr = process.communicate(timeout=30)
    assert len(stderr) < 5000
    assert all(json.loads(line)["message"] for line in stderr.splitlines())
