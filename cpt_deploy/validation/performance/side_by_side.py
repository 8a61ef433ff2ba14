"""Compare the latency of several models in onnxruntime, timed in turn so that disturbances affect all alike."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.validation.performance.timing import interleaved, median_ratio


@dataclass(frozen=True)
class RelativeLatency:
    """The latency of a model relative to the first one.

    Args:
        milliseconds: Median over the rounds.
        speedup: Median over the rounds of the first model's time divided by this one's.
    """

    milliseconds: float
    speedup: float


def compare_latency(
    models: Mapping[str, Path | bytes], *, batch_size: int = 1, rounds: int = 50, threads: int = 1
) -> dict[str, RelativeLatency]:
    """Time models on random inputs, in turn and in reversed order every other round.

    Args:
        models: ONNX files by name, all with the same input; the others are compared with the first.
        batch_size: Rows per call.
        rounds: Number of timed calls of each model.
        threads: Threads of onnxruntime.

    Raises:
        BundleError: If onnxruntime cannot load a model.
    """
    sessions = {name: OnnxRuntimeModel(model, threads=threads) for name, model in models.items()}
    signature, random = next(iter(sessions.values())).signature, np.random.default_rng(0)
    inputs = {
        tensor.name: random.standard_normal((batch_size, *shape)).astype(tensor.dtype)
        for tensor, shape in zip(signature.inputs, signature.input_shapes(), strict=True)
    }
    calls = {name: partial(session.run, inputs) for name, session in sessions.items()}
    timed = interleaved(calls, rounds=rounds)
    reference = next(iter(timed.values()))
    return {
        name: RelativeLatency(1e3 * statistics.median(values), median_ratio(reference, values))
        for name, values in timed.items()
    }
