"""Latency of a Transformer language model in onnxruntime: our export, float32, and onnxruntime's dynamic quantization.

All three are the same network with the same cache of keys and values: the float file has its layers in float32, and
`quantize_dynamic` makes the third file of it. One thread, interleaved. On processors without
VNNI ours runs as `open_session` does, with exact sums, which costs speed; the dynamic one as a user would run it, with
sums that can saturate there.

    python benchmarks/text_latency.py [--rounds 40]
"""

import argparse
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import interleaved, machine, machine_line, markdown_table, write_results
from onnxruntime.quantization import QuantType, quantize_dynamic

from cpt_deploy.bundle import OnnxRuntimeModel, next_states
from cpt_deploy.bundle.runtime.sessions import open_session, session_options
from cpt_deploy.export import write_float_onnx, write_onnx
from cpt_deploy.integer import freeze
from cpt_deploy.models.language import TransformerLanguageModel
from cpt_deploy.models.language.preparing import preparing_arguments
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare

VOCABULARY, SHAPE = 10_000, {"features": 512, "layers": 6, "heads": 8, "inner": 2048, "context": 256}
CASES = {"one token after 128": (128, 1), "64 tokens": (0, 64)}
OURS, FLOATS, DYNAMIC = "this export", "float32", "onnxruntime's `quantize_dynamic`"


def prepared_model() -> QuantizedModel:
    """Return a Transformer with random weights and known ranges."""
    torch.manual_seed(0)
    network = TransformerLanguageModel(VOCABULARY, **SHAPE, dropout=0.0)
    (tokens, *empty), shapes, states = preparing_arguments(network, VOCABULARY)
    model = prepare(network, (tokens, *empty), QuantizationConfig(), dynamic_shapes=shapes, states=states)
    calibrate(model, [(torch.randint(0, VOCABULARY, (len(tokens), 64)), *empty)])
    return model.eval()


def dynamic(floats: bytes) -> bytes:
    """Return a float file quantized by onnxruntime's dynamic quantization."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "dynamic.onnx")
        before.write_bytes(floats)
        quantize_dynamic(before, after, weight_type=QuantType.QInt8)
        return after.read_bytes()


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per file."""
    measured, sizes = content["measured"], content["bytes"]
    rows = [
        [name, *(f"{case['milliseconds'][name]:.2f} ms" for case in measured), f"{size / 1e6:.1f} MB"]
        for name, size in sizes.items()
    ]
    ratios = ", ".join(f"{case['case']} {case['against_float']:.2f} times as fast" for case in measured)
    return (
        f"Transformer of {SHAPE['layers']} layers of {SHAPE['features']} with {VOCABULARY:,} tokens, one thread, least "
        f"of {content['rounds']} calls in turns (`python benchmarks/text_latency.py`)\n\n"
        f"{markdown_table(['', *CASES, 'file'], rows)}\n\nOurs against float32: {ratios}.\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    model = prepared_model()
    integers, floats = write_onnx(freeze(model)), write_float_onnx(model)
    files = {FLOATS: floats, DYNAMIC: dynamic(floats), OURS: integers}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, SHAPE["context"]))
    long = next_states(model.signature, OnnxRuntimeModel(integers, model.signature).run({"input_ids": tokens}))
    measured: list[dict[str, Any]] = []
    for case, (past, length) in CASES.items():
        state = {name: np.ascontiguousarray(value[:, :, :past]) for name, value in long.items()}
        feed = {"input_ids": tokens[:, past : past + length], **state}
        sessions = {name: _session(data, plain=name == DYNAMIC) for name, data in files.items()}
        logits = {name: session.run(["logits"], feed)[0] for name, session in sessions.items()}
        times = interleaved({name: partial(s.run, None, feed) for name, s in sessions.items()}, rounds=rounds)
        measured.append(
            {
                "case": case,
                "milliseconds": {name: 1e3 * min(values) for name, values in times.items()},
                "against_float": min(times[FLOATS]) / min(times[OURS]),
                "against_dynamic": min(times[DYNAMIC]) / min(times[OURS]),
                "logit_difference": float(np.abs(logits[OURS] - logits[FLOATS]).max()),
                "greatest_logit": float(np.abs(logits[FLOATS]).max()),
            }
        )
    sizes = {name: len(data) for name, data in files.items()}
    content = {"machine": machine(), "rounds": rounds, "bytes": sizes, "measured": measured}
    write_results("text_latency", content, table(content))


def _session(data: bytes, *, plain: bool) -> Any:
    """Return a session of one thread; a plain one has onnxruntime's default sums, which can saturate without VNNI."""
    if not plain:
        return open_session(data)
    import onnxruntime

    options = session_options(exact_sums=False)
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options)


if __name__ == "__main__":
    main()
