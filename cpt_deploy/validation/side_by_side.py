"""Latency of several models in onnxruntime, timed in turn so that whatever else the machine does hits all alike."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpt_deploy.bundle import OnnxRuntimeModel

WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Latency:
    """How long a model takes.

    Args:
        milliseconds: Median over the rounds.
        speedup: Median over the rounds of the first model's time divided by this one's.
    """

    milliseconds: float
    speedup: float


def compare_latency(
    models: Mapping[str, Path | bytes], *, batch_size: int = 1, rounds: int = 50, threads: int = 1
) -> dict[str, Latency]:
    """Time models on noise, in turn and in reversed order every other round.

    Args:
        models: ONNX files by name; the first is what the others are compared with. All take the same input.
        batch_size: Images a call.
        rounds: Timed calls of each model.
        threads: Threads that a call computes with.

    Raises:
        BundleError: If onnxruntime cannot load a model.
    """
    sessions = {name: OnnxRuntimeModel(model, threads=threads) for name, model in models.items()}
    shape = next(iter(sessions.values())).input_shape
    inputs = np.random.default_rng(0).standard_normal((batch_size, *shape)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(WARM_UP_ROUNDS + rounds):
        for name in sessions if index % 2 else reversed(sessions):
            began = time.perf_counter()
            sessions[name].run(inputs)
            seconds[name].append(time.perf_counter() - began)
    timed = {name: values[WARM_UP_ROUNDS:] for name, values in seconds.items()}
    reference = next(iter(timed.values()))
    return {
        name: Latency(
            1e3 * statistics.median(values),
            statistics.median(first / value for first, value in zip(reference, values, strict=True)),
        )
        for name, values in timed.items()
    }
