"""Size and speed of a file by the bits of its weights: INT4 and INT2 weights are unpacked when a session is created.

For each network one integer file per bit-width, and the float32 export; latency on one thread, interleaved.

    python benchmarks/packed_weights.py [--rounds 40]
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import onnxruntime
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from onnx_latency import NETWORKS, calibrated_model, images

from cpt_deploy.export import smallest_opset, write_float_onnx, write_onnx
from cpt_deploy.integer import freeze

BITS = (8, 6, 4, 3, 2)


def session(model: bytes) -> onnxruntime.InferenceSession:
    """Return a session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """Write the files of one network, load and time them."""
    shape = NETWORKS[name]
    model = calibrated_model(name, shape)
    size = len(write_float_onnx(model))
    files, opsets, weights = {}, {}, {}
    for bits in BITS:
        graph = freeze(model, weight_bits=bits)
        opsets[bits] = smallest_opset(graph)
        files[bits] = write_onnx(graph, opset=opsets[bits])
        stored = {8: 8, 6: 8, 4: 4, 3: 4, 2: 2}
        weights[bits] = sum(o.codes.size * stored.get(o.bits, 8) for o in graph.weighted()) / 8
    loading = interleaved({str(bits): partial(session, data) for bits, data in files.items()}, rounds=5)
    feed = {"image": images(1, shape).numpy()}
    sessions = {str(bits): partial(session(data).run, None, feed) for bits, data in files.items()}
    times = interleaved(sessions, rounds=rounds)
    return [
        {
            "network": name,
            "bits": bits,
            "opset": opsets[bits],
            "bytes": len(files[bits]),
            "float32_bytes": size,
            "weight_bytes": weights[bits],
            "load_milliseconds": 1e3 * statistics.median(loading[str(bits)]),
            "milliseconds": 1e3 * statistics.median(times[str(bits)]),
            "time_of_8_bits": 1 / median_ratio(times["8"], times[str(bits)]),
        }
        for bits in BITS
    ]


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    return [
        result["network"],
        str(result["bits"]),
        str(result["opset"]),
        f"{result['bytes'] / 1e6:.3f} MB",
        f"{result['bytes'] / result['float32_bytes']:.3f}",
        f"{result['weight_bytes'] / result['float32_bytes']:.3f}",
        f"{result['load_milliseconds']:.0f} ms",
        f"{result['milliseconds']:.2f} ms",
        f"{result['time_of_8_bits']:.2f}",
    ]


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per network and bit-width."""
    header = [
        "network", "bits of weights", "opset", "file", "of float32", "weights alone", "load", "one image",
        "time / time of 8 bits",
    ]  # fmt: skip
    return (
        "model.onnx by the bits of its weights, first and last layer at 8 bits; one thread (`python "
        "benchmarks/packed_weights.py`)\n\n"
        f"{markdown_table(header, [row(result) for result in content['results']])}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    started = time.perf_counter()
    results = [result for name in NETWORKS for result in measure(name, arguments.rounds)]
    seconds = round(time.perf_counter() - started)
    content = {"machine": machine(), "seconds": seconds, "results": results}
    write_results("packed_weights", content, table(content))


if __name__ == "__main__":
    main()
