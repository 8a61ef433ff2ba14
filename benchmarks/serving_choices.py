"""Comparison of libraries for the server: HTTP server, JSON, decoding of JPEG files.

Libraries that are not installed are left out (`pip install granian hypercorn msgspec simplejpeg`); wrk sends requests.

    python benchmarks/serving_choices.py [--rounds 5] [--seconds 2] [--nice -10]
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from load_generation import PreparedRequest, generate_load, require_wrk
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from PIL import Image
from server_processes import RunningServer, ServerCommand, only_awake, running, set_niceness

APP_FOLDER = Path(__file__).parent / "serving_peers"
FIRST_PORT = 18300
BODY_BYTES = {"12 KiB": 3 * 32 * 32 * 4, "588 KiB": 3 * 224 * 224 * 4}
CLIENTS = (1, 8, 64)
PACKAGES = ("uvicorn", "httptools", "uvloop", "granian", "hypercorn", "orjson", "msgspec", "pillow", "simplejpeg")
Arguments = list[str]


def http_servers() -> dict[str, Arguments]:
    """Return Python's arguments that start each installed server, without the port."""
    uvicorn = ["-m", "uvicorn", "empty_app:app", "--log-level", "warning", "--no-access-log"]
    granian = ["-m", "granian", "empty_app:app", "--interface", "asgi", "--loop", "uvloop", "--log-level", "warning"]
    servers = {"uvicorn: h11, asyncio": [*uvicorn, "--http", "h11", "--loop", "asyncio"]}
    if find_spec("httptools"):
        servers["uvicorn: httptools, asyncio"] = [*uvicorn, "--http", "httptools", "--loop", "asyncio"]
    if find_spec("httptools") and find_spec("uvloop"):
        servers["uvicorn: httptools, uvloop"] = [*uvicorn, "--http", "httptools", "--loop", "uvloop"]
    if find_spec("granian"):
        servers["granian"] = granian
    if find_spec("hypercorn"):
        servers["hypercorn: uvloop"] = ["-m", "hypercorn", "empty_app:app", "--worker-class", "uvloop"]
    return servers


def measure_http(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Send requests of two sizes to an empty app under each server, one core for the server and one for wrk."""
    cores = sorted(os.sched_getaffinity(0))
    results = []
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.NamedTemporaryFile())
        servers: dict[str, RunningServer] = {}
        for port, (name, arguments) in enumerate(http_servers().items(), FIRST_PORT):
            where = ["--bind", f"127.0.0.1:{port}"] if name.startswith("hypercorn") else ["--port", str(port)]
            command = ServerCommand(name, [sys.executable, *arguments, *where], port, "/", folder=APP_FOLDER)
            servers[name] = stack.enter_context(running(command, core=cores[-1], log=log.file))
        for size, count in BODY_BYTES.items():
            request = PreparedRequest("/", bytes(count), {"Content-Type": "application/octet-stream"})
            for clients in CLIENTS:
                loads: dict[str, list[Any]] = {name: [] for name in servers}
                for index in range(rounds):
                    for name in list(servers)[:: 1 if index % 2 == 0 else -1]:
                        with only_awake(servers[name], list(servers.values())):
                            load = generate_load(
                                servers[name].port, request, clients=clients, seconds=seconds, core=cores[0]
                            )
                        loads[name].append(load)
                results.append({"body": size, "clients": clients, "servers": _medians(loads)})
    return results


def _medians(loads: Mapping[str, list[Any]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            key: statistics.median(getattr(load, key) for load in values)
            for key in ("requests_per_s", "p50_ms", "p99_ms", "generator_cpu")
        }
        for name, values in loads.items()
    }


def json_work() -> dict[str, dict[str, Callable[[], object]]]:
    """Return a server's work on JSON, by library."""
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, 3, 32, 32],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 12288},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    values = np.random.default_rng(0).normal(size=3072).astype(np.float32)
    body = orjson.dumps({"data": values}, option=orjson.OPT_SERIALIZE_NUMPY)
    logits = values[:1000].copy()
    work: dict[str, dict[str, Callable[[], object]]] = {
        "read the head of a binary request": {
            "json": partial(json.loads, header),
            "orjson": partial(orjson.loads, header),
        },
        "read 3072 numbers": {"json": partial(json.loads, body), "orjson": partial(orjson.loads, body)},
        "write 1000 float32": {
            "json": lambda: json.dumps({"data": logits.tolist()}).encode(),
            "orjson": lambda: orjson.dumps({"data": logits}, option=orjson.OPT_SERIALIZE_NUMPY),
        },
    }
    if find_spec("msgspec"):
        import msgspec

        encoder = msgspec.json.Encoder()
        decoder = msgspec.json.Decoder()
        work["read the head of a binary request"]["msgspec"] = partial(decoder.decode, header)
        work["read 3072 numbers"]["msgspec"] = partial(decoder.decode, body)
        work["write 1000 float32"]["msgspec"] = lambda: encoder.encode({"data": logits.tolist()})
    return work


def image_work() -> dict[str, dict[str, Callable[[], object]]]:
    """Return the decoding of JPEG files of three sizes to RGB pixels, by library."""
    work: dict[str, dict[str, Callable[[], object]]] = {}
    for width, height in ((32, 32), (500, 375), (1920, 1080)):
        data = _photograph(width, height)
        decoders: dict[str, Callable[[], object]] = {"Pillow": partial(_decode_with_pillow, data)}
        if find_spec("simplejpeg"):
            import simplejpeg

            decoders["simplejpeg"] = partial(simplejpeg.decode_jpeg, data, fastdct=False, fastupsample=False)
        work[f"decode {width} x {height}"] = decoders
    return work


def _photograph(width: int, height: int) -> bytes:
    """Return a JPEG file with about the detail of a photograph."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()


def _decode_with_pillow(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))


def measure_work(work: Mapping[str, Mapping[str, Callable[[], object]]], rounds: int) -> list[dict[str, Any]]:
    """Time the libraries at each piece of work in turn; ratios are relative to the first one."""
    results = []
    for name, runs in work.items():
        times = interleaved(runs, rounds=rounds)
        first = next(iter(runs))
        results.append(
            {
                "work": name,
                "microseconds": {key: 1e6 * statistics.median(values) for key, values in times.items()},
                "speedup": {key: median_ratio(times[first], values) for key, values in times.items()},
            }
        )
    return results


def _http_table(results: list[dict[str, Any]]) -> str:
    names = list(results[0]["servers"])
    rows = [
        [result["body"], str(result["clients"])]
        + [f"{result['servers'][n]['requests_per_s']:.0f}, {result['servers'][n]['p50_ms']:.2f} ms" for n in names]
        for result in results
    ]
    return markdown_table(["request body", "clients", *names], rows)


def _work_table(results: list[dict[str, Any]], title: str) -> str:
    names = list(results[0]["microseconds"])
    rows = [[r["work"]] + [f"{r['microseconds'][n]:.1f} µs ({r['speedup'][n]:.2f}x)" for n in names] for r in results]
    return markdown_table([title, *names], rows)


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text: a table for each choice."""
    versions = content["machine"]["versions"]
    return (
        "An empty ASGI app on one core, wrk on another: requests/s and median latency "
        "(`python benchmarks/serving_choices.py`)\n\n"
        f"{_http_table(content['http'])}\n\n{_work_table(content['json'], 'JSON')}\n\n"
        f"{_work_table(content['images'], 'JPEG to RGB')}\n\n{machine_line(content['machine'])} "
        + ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
        + "."
    )


def main() -> None:
    """Measure the three choices and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn of an HTTP server")
    parser.add_argument("--nice", type=int, default=0, help="niceness of all processes (< 0 needs root)")
    arguments = parser.parse_args()
    require_wrk()
    set_niceness(arguments.nice)
    http = measure_http(arguments.rounds, arguments.seconds)
    libraries = measure_work(json_work(), 1000)
    images = measure_work(image_work(), 100)
    info = machine()
    info["versions"].update({name: version(name) for name in PACKAGES if find_spec(name.replace("pillow", "PIL"))})
    content = {"machine": info, "http": http, "json": libraries, "images": images}
    write_results("serving_choices", content, table(content))


if __name__ == "__main__":
    main()
