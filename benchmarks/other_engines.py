"""One exported file in other engines: accuracy, agreement with onnxruntime in the integers of logits, and latency.

Engines that are not installed are listed as such. OpenVINO is installed by `pip install openvino`; onnxruntime-web
runs under Node from a folder in which `npm install onnxruntime-web` was done. All run on one thread. OpenVINO runs a
second time with the instructions of a processor without VNNI: a portable bundle must not change.

    python benchmarks/other_engines.py runs/fashion/bundle-8bit [more bundles] --data fashion-mnist [--limit 2000]
        [--node-modules FOLDER] [--rounds 30]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from measuring import interleaved, machine, machine_line, markdown_table, median_ratio, write_results

from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel
from cpt_deploy.data import load_images
from cpt_deploy.validation import read_cpu, wilson_interval

Inputs = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]

REFERENCE = "onnxruntime"
BATCHES = (1, 32)
NO_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
WEB_SCRIPT = Path(__file__).with_name("onnxruntime_web.cjs")
INSTALL = {"OpenVINO": "pip install openvino", "onnxruntime-web": "npm install onnxruntime-web"}


@dataclass(frozen=True)
class Engine:
    """An engine with a model loaded.

    Args:
        name: Name of the engine.
        version: Version of the engine.
        run: Function from normalised images, float32 (N, C, H, W), to logits, float32 (N, K).
        timed: Function from images to a function that only computes them, to be timed.
    """

    name: str
    version: str
    run: Callable[[Inputs], Logits]
    timed: Callable[[Inputs], Callable[[], object]]


def onnxruntime_engine(bundle: Bundle) -> Engine:
    """Load a bundle as the server does."""
    model = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    return Engine(
        REFERENCE,
        onnxruntime.__version__,
        lambda x: model.run({"image": x})["logits"],
        lambda x: lambda: model.run({"image": x}),
    )


def openvino_engine(model: Path) -> Engine | None:
    """Load a model in OpenVINO, with its float parts in float32; None if it is not installed."""
    if find_spec("openvino") is None:
        return None
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(model)), "CPU", options)

    def run(inputs: Inputs) -> Logits:
        return np.array(compiled(inputs)[0])

    return Engine("OpenVINO", openvino.get_version().split("-")[0], run, lambda x: lambda: compiled(x))


def write_openvino_logits(model: str, inputs: str, logits: str) -> None:
    """Run OpenVINO on saved batches, (B, N, C, H, W) in a .npz by number, and save the logits."""
    engine = openvino_engine(Path(model))
    assert engine is not None
    with np.load(inputs) as saved:
        np.save(logits, np.concatenate([engine.run(saved[name]) for name in saved.files]))


def openvino_without_vnni(bundle: Bundle, inputs: list[Inputs]) -> Logits:
    """Run OpenVINO with the instructions of a processor without VNNI, in a process of its own."""
    call = "import sys, other_engines; other_engines.write_openvino_logits(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", *inputs)
        files = [str(bundle.onnx_path.resolve()), f"{folder}/inputs.npz", f"{folder}/logits.npy"]
        here = Path(__file__).parent
        subprocess.run([sys.executable, "-c", call, *files], check=True, cwd=here, env=os.environ | NO_VNNI)
        logits: Logits = np.load(files[-1])
    return logits


def changed_without_vnni(bundle: Bundle, engine: Engine, inputs: list[Inputs]) -> dict[str, Any]:
    """Compare OpenVINO's integers of logits with those without VNNI instructions."""
    scale = bundle.golden.scales["logits"]
    with_vnni = np.rint(np.concatenate([engine.run(batch) for batch in inputs]) / scale)
    without = np.rint(openvino_without_vnni(bundle, inputs) / scale)
    return {
        "differing_codes": float((with_vnni != without).mean()),
        "worst_difference": int(np.abs(with_vnni - without).max()),
        "other_labels": int((with_vnni.argmax(1) != without.argmax(1)).sum()),
    }


def web_installed(folder: Path) -> bool:
    """Return whether Node is installed and a folder's node_modules contain onnxruntime-web."""
    return shutil.which("node") is not None and (folder / "node_modules" / "onnxruntime-web").is_dir()


@contextmanager
def web_engine(bundle: Bundle, folder: Path) -> Iterator[Engine | None]:
    """Load a bundle in onnxruntime-web under Node while the context is open; None if either is not installed."""
    if not web_installed(folder):
        yield None
        return
    command = ["node", str(WEB_SCRIPT), str(folder), str(bundle.onnx_path)]
    with (
        tempfile.TemporaryDirectory() as exchange,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            yield _web_engine(process, Path(exchange))
        finally:
            process.terminate()


def _web_engine(process: "subprocess.Popen[str]", exchange: Path) -> Engine:
    def answer() -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"onnxruntime-web ended with code {process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def ask(**request: Any) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return answer()

    def feed(inputs: Inputs) -> None:
        np.ascontiguousarray(inputs, dtype=np.float32).tofile(exchange / "inputs")
        ask(feed=str(exchange / "inputs"), shape=list(inputs.shape))

    def run(inputs: Inputs) -> Logits:
        feed(inputs)
        shape = ask(run=True, save=str(exchange / "logits"))["shape"]
        return np.fromfile(exchange / "logits", dtype=np.float32).reshape(shape)

    def timed(inputs: Inputs) -> Callable[[], object]:
        # the batch is passed once, so that only the computation is repeated and timed
        feed(inputs)
        return lambda: ask(run=True)

    return Engine("onnxruntime-web", answer()["version"], run, timed)


def batches(bundle: Bundle, data: str, limit: int | None) -> Iterator[tuple[Inputs, npt.NDArray[np.int64]]]:
    """Yield preprocessed test images, spread over the data set, with their labels."""
    images = load_images(data, split="test", root=None)
    count = len(images) if limit is None else min(limit, len(images))
    chosen = np.arange(count) * len(images) // count
    preprocessing = bundle.expect_processor(ImageProcessor).preprocessing
    for start in range(0, count, 64):
        part = chosen[start : start + 64]
        yield np.stack([preprocessing.apply(images.image(int(i))) for i in part]), images.labels[part]


def agreement(bundle: Bundle, engines: list[Engine], data: str, limit: int | None) -> dict[str, dict[str, Any]]:
    """Count right labels, and labels and integers of logits that differ from onnxruntime's, for each engine."""
    golden = bundle.golden
    counts = {engine.name: {"correct": 0, "other_labels": 0, "differing": 0, "worst": 0} for engine in engines}
    samples = codes_total = 0
    for inputs, labels in batches(bundle, data, limit):
        codes = {e.name: np.rint(e.run(inputs) / golden.scales["logits"]).astype(np.int64) for e in engines}
        reference = codes[REFERENCE]
        samples, codes_total = samples + len(labels), codes_total + reference.size
        for name, found in codes.items():
            difference = np.abs(found - reference)
            counts[name]["correct"] += int((found.argmax(1) == labels).sum())
            counts[name]["other_labels"] += int((found.argmax(1) != reference.argmax(1)).sum())
            counts[name]["differing"] += int(np.count_nonzero(difference))
            counts[name]["worst"] = max(counts[name]["worst"], int(difference.max()))
    result = {}
    for name, entry in counts.items():
        accuracy = wilson_interval(entry["correct"], samples)
        result[name] = {
            "samples": samples,
            "accuracy": accuracy.value,
            "interval_95": [accuracy.low, accuracy.high],
            "other_labels": entry["other_labels"],
            "differing_codes": entry["differing"] / codes_total,
            "worst_difference": entry["worst"],
        }
    return result


def latency(bundle: Bundle, engines: list[Engine], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time one batch in all engines in turn; ratios are relative to onnxruntime."""
    golden = bundle.golden.inputs["image"]
    inputs = np.resize(golden, (batch, *golden.shape[1:])).astype(np.float32)
    times = interleaved({engine.name: engine.timed(inputs) for engine in engines}, rounds=rounds)
    return {
        name: {"milliseconds": 1e3 * statistics.median(values), "ratio": median_ratio(values, times[REFERENCE])}
        for name, values in times.items()
    }


def measure(bundle: Bundle, data: str, limit: int | None, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure one bundle in every engine; engines that are not installed get an entry without figures."""
    with ExitStack() as stack:
        found = {
            REFERENCE: onnxruntime_engine(bundle),
            "OpenVINO": openvino_engine(bundle.onnx_path),
            "onnxruntime-web": stack.enter_context(web_engine(bundle, folder)),
        }
        engines = [engine for engine in found.values() if engine is not None]
        agreed = agreement(bundle, engines, data, limit)
        times = {batch: latency(bundle, engines, batch, rounds) for batch in BATCHES}
        changed = None
        if found["OpenVINO"] is not None and read_cpu().saturates is False:
            inputs = [inputs for inputs, _ in batches(bundle, data, limit)]
            changed = changed_without_vnni(bundle, found["OpenVINO"], inputs)
    results = []
    for name, engine in found.items():
        entry: dict[str, Any] = {"bundle": bundle.path.name, "engine": name, "installed": engine is not None}
        if engine is not None:
            entry |= {"version": engine.version, **agreed[name]}
            entry["latency"] = {str(batch): times[batch][name] for batch in BATCHES}
            entry["changed_without_vnni"] = changed if name == "OpenVINO" else None
        results.append(entry)
    return results


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    if not result["installed"]:
        return [result["bundle"], result["engine"], f"not installed ({INSTALL[result['engine']]})", *["-"] * 6]
    changed = result["changed_without_vnni"]
    low, high = result["interval_95"]
    return [
        result["bundle"],
        f"{result['engine']} {result['version']}",
        f"{result['accuracy']:.2%} ({low:.2%} to {high:.2%})",
        f"{result['other_labels']} of {result['samples']:,}",
        f"{result['differing_codes']:.2%}",
        str(result["worst_difference"]),
        f"{changed['differing_codes']:.3%}" if changed else "-",
        *(f"{result['latency'][str(batch)]['ratio']:.2f}" for batch in BATCHES),
    ]


HEADER = [
    "bundle", "engine", "accuracy", "other labels", "logit integers that differ", "worst difference of integers",
    "integers changed without VNNI",
    *(f"time / {REFERENCE}, batch {batch}" for batch in BATCHES),
]  # fmt: skip


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per bundle and engine."""
    return (
        f"The exported files in other engines, on {content['data']}; differences are against onnxruntime, times "
        "medians of an interleaved run on one thread (`python benchmarks/other_engines.py`)\n\n"
        f"{markdown_table(HEADER, [row(result) for result in content['results']])}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure the bundles and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--node-modules", type=Path, default=Path(os.environ.get("CPT_NODE_MODULES", ".")))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--name", default="other_engines", help="results/NAME.json and .md")
    arguments = parser.parse_args()
    results = [
        entry
        for path in arguments.bundles
        for entry in measure(
            Bundle.open(path), arguments.data, arguments.limit, arguments.node_modules, arguments.rounds
        )
    ]
    content = {"machine": machine(), "data": arguments.data, "results": results}
    write_results(arguments.name, content, table(content))


if __name__ == "__main__":
    main()
