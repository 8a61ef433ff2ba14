"""Keep operations in float that are a small share of the work and cause most of the error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.onnx_graph.finding.choosing import Choice
from cpt_deploy.onnx_graph.finding.found import Found
from cpt_deploy.onnx_graph.finding.placement import macs_of
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.running import Measured, Runner, Sample
from cpt_deploy.onnx_graph.writer import write_onnx

#: Share of the multiply-accumulates on integers that may go back to float.
MOST_MACS = 0.08
#: Share of the error that has to go with them.
LEAST_GAIN = 0.5
#: Error of an output, as a share of its power, below which nothing is changed (20 dB).
TOLERATED = 0.01


def spare(
    network: OnnxNetwork,
    measured: Mapping[str, Measured],
    choice: Choice,
    lower: Callable[[Choice], IntegerGraph],
    samples: Sequence[Sample],
) -> Choice:
    """Return the operations that stay on integers.

    Stretches of integer operations between float ones are tried each alone, if outputs have more error than is
    tolerated. Those with the most error per multiply-accumulate go back to float, if they are few enough and most of
    the error goes with them: an example is a spectrum before its logarithm, for whose small values 8 bits are too few.

    Args:
        network: The network.
        measured: Its tensors, as seen in a run.
        choice: All operations with an integer form.
        lower: Returns the integer graph of a choice.
        samples: Samples on which outputs are compared.
    """
    stretches = _stretches(choice)
    if len(stretches) < 2:
        return choice
    runner = Runner(network.original, network)
    wanted = [runner.run(sample) for sample in samples]

    def error(operations: Iterable[Found]) -> float:
        return _error(lower(_only(choice, operations)), samples, wanted)

    whole = error(choice.operations)
    if whole < TOLERATED:
        return choice
    macs = [sum(macs_of(network, measured, network.nodes[i]) for o in part for i in o.nodes) for part in stretches]
    budget = MOST_MACS * sum(macs)
    errors = {i: error(part) for i, part in enumerate(stretches) if macs[i] <= budget}
    spared: list[int] = []
    for i in sorted(errors, key=lambda i: -errors[i] / max(macs[i], 1)):
        if errors[i] >= TOLERATED * whole and sum(macs[j] for j in (*spared, i)) <= budget:
            spared.append(i)
    kept = [operation for i, part in enumerate(stretches) if i not in spared for operation in part]
    if not spared or error(kept) > (1 - LEAST_GAIN) * whole:
        return choice
    nodes = (node for i in spared for operation in stretches[i] for node in operation.nodes)
    return replace(_only(choice, kept), spared=frozenset(nodes))


def _stretches(choice: Choice) -> list[list[Found]]:
    """Return the operations in groups that exchange integers."""
    groups: list[tuple[set[str], list[Found]]] = []
    for operation in choice.operations:
        joined = [group for group in groups if not group[0].isdisjoint(operation.inputs)]
        made = {operation.output} - choice.real
        made.update(name for names, _ in joined for name in names)
        groups = [group for group in groups if group not in joined]
        groups.append((made, [*(other for _, others in joined for other in others), operation]))
    return [operations for _, operations in groups]


def _only(choice: Choice, operations: Iterable[Found]) -> Choice:
    """Return a choice of some of the operations."""
    wanted = set(map(id, operations))
    kept = tuple(operation for operation in choice.operations if id(operation) in wanted)
    read = {name for operation in kept for name in operation.inputs}
    return replace(
        choice,
        operations=kept,
        real=choice.real & {operation.output for operation in kept},
        entries=tuple(name for name in choice.entries if name in read),
    )


def _error(graph: IntegerGraph, samples: Sequence[Sample], wanted: Sequence[Mapping[str, Any]]) -> float:
    """Return the error of the outputs as a share of their power, of the output with the largest one."""
    session = open_session(write_onnx(graph), threads=None)
    names = [output.name for output in session.get_outputs()]
    powers, errors = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for sample, expected in zip(samples, wanted, strict=True):
        for name, got in zip(names, session.run(names, dict(sample)), strict=True):
            if not isinstance(got, np.ndarray) or got.dtype.kind != "f" or got.shape != expected[name].shape:
                continue
            powers[name] += float(np.square(expected[name], dtype=np.float64).sum())
            errors[name] += float(np.square(got - expected[name], dtype=np.float64).sum())
    return max((errors[name] / powers[name] for name in names if powers[name] > 0), default=0.0)
