"""Cost of exact integers on x86 without VNNI: native models in fast and in exact kernels, and portable models.

The fast kernels for uint8 times int8 saturate there; `open_session` selects exact ones for native models. The networks
have random weights, so the share of wrong logits with fast kernels is only an example. Runs only on such processors.

    python benchmarks/without_vnni.py [--rounds 40]
"""

import argparse
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results
from onnx_latency import NETWORKS, calibrated_model, images

from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.sessions import open_session, session_options
from cpt_deploy.export import write_float_onnx, write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.quantization import make_native

FAST, EXACT, PORTABLE = "fast kernels", "exact kernels", "portable model"


def fast_session(model: bytes) -> Any:
    """Return a session with onnxruntime's default options."""
    options = session_options(exact_sums=False)
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(name: str, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Time one network at batch 1 and compare the logits of a batch with the executor's."""
    model = calibrated_model(name, shape)
    floats, portable = write_float_onnx(model), freeze(model)
    make_native(model)
    graph = freeze(model)
    ordinary = write_onnx(graph)
    sessions = {
        "float32": open_session(floats, rest_between_runs=True),
        FAST: fast_session(ordinary),
        EXACT: open_session(ordinary, rest_between_runs=True),
        PORTABLE: open_session(write_onnx(portable), rest_between_runs=True),
    }
    feed = {"image": images(1, shape).numpy()}
    times = interleaved({key: partial(session.run, None, feed) for key, session in sessions.items()}, rounds=rounds)
    graphs = {FAST: graph, EXACT: graph, PORTABLE: portable}
    return {
        "network": name,
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in times.items()},
        "speedup": {key: median_ratio(times["float32"], times[key]) for key in graphs},
        "wrong_logits": {key: wrong_logits(sessions[key], of, shape) for key, of in graphs.items()},
    }


def wrong_logits(session: Any, graph: IntegerGraph, shape: tuple[int, int, int]) -> float:
    """Return the share of logits that differ from the executor's."""
    x = images(8, shape)
    return float(np.mean(session.run(None, {"image": x.numpy()})[0] != IntegerExecutor(graph)(x).numpy()))


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per network."""
    rows = [
        [
            entry["network"],
            f"{entry['milliseconds']['float32']:.2f}",
            *(f"{entry['milliseconds'][key]:.2f} ({entry['speedup'][key]:.2f}x)" for key in (FAST, EXACT, PORTABLE)),
            *(f"{100 * entry['wrong_logits'][key]:.0f} %" for key in (FAST, EXACT, PORTABLE)),
        ]
        for entry in content["results"]
    ]
    header = ["network", "float32 ms", *(f"{key}, ms" for key in (FAST, EXACT, PORTABLE)),
              *(f"wrong logits, {key}" for key in (FAST, EXACT, PORTABLE))]  # fmt: skip
    return (
        "onnxruntime on a processor without VNNI, one thread, batch 1, medians of an interleaved run, and logits of 8 "
        "images that are not the integer executor's (`python benchmarks/without_vnni.py`, random weights)\n\n"
        f"{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    if read_cpu().saturates is not True:
        parser.error("this processor does not saturate, so it has nothing to measure")
    results = [measure(name, shape, arguments.rounds) for name, shape in NETWORKS.items()]
    content = {"machine": machine(), "results": results}
    write_results("without_vnni", content, table(content))


if __name__ == "__main__":
    main()
