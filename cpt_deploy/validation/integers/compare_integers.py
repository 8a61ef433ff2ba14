"""Every integer of a frozen graph against onnxruntime's, for a graph of any signature."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.integer.graph import IntegerGraph, product_units
from cpt_deploy.validation.integers.comparison import TensorResult
from cpt_deploy.validation.integers.inside import InsideComparison
from cpt_deploy.validation.integers.integer_model import ExecutedGraph
from cpt_deploy.validation.integers.intermediate_outputs import with_intermediate_outputs


@dataclass(frozen=True)
class GraphComparison:
    """How the integers of a graph compare with onnxruntime's.

    Attributes:
        tensors: What integers compute, and results of layers that are real values, each from the codes that onnxruntime
            had where integers begin. Here nothing may differ.
        free_running: The codes of all tensors where the executor computes operations in float itself; their last places
            may differ.
        boundaries: Codes where integers begin, each computed in float from onnxruntime's codes before it; those differ
            that are more than `A_FEW_CODES` apart.
        outputs: By name, the greatest difference of an output of the file, as a share of the greatest value, from the
            same codes; infinite if its shape differs.
        hidden: Tensors that could not be looked at, since as outputs they would change what onnxruntime runs.
    """

    tensors: tuple[TensorResult, ...]
    free_running: tuple[TensorResult, ...]
    boundaries: tuple[TensorResult, ...]
    outputs: Mapping[str, float]
    hidden: tuple[str, ...]

    @property
    def mismatches(self) -> int:
        """How many integers differ."""
        return sum(tensor.mismatches for tensor in self.tensors)


def compare_integers(
    graph: IntegerGraph, onnx_file: Path | bytes, inputs: Mapping[str, npt.NDArray[Any]], *, provider: str = "cpu"
) -> GraphComparison:
    """Run a graph's executor and its ONNX file on the same inputs, and compare every quantized tensor.

    Args:
        graph: What `freeze` made.
        onnx_file: What `write_onnx` made of it: the file or its content.
        inputs: A batch, by the names of the graph's signature.
        provider: The execution provider of onnxruntime.

    Raises:
        ValueError: If the inputs are not those of the graph.
    """
    file = onnx_file if isinstance(onnx_file, bytes) else onnx_file.read_bytes()
    model, observable = ExecutedGraph(graph), with_intermediate_outputs(file, provider, product_units(graph))
    inside = InsideComparison(observable, graph.signature, provider, model)
    # The file itself: more outputs can change how onnxruntime runs it.
    served = OnnxRuntimeModel(file, graph.signature, threads=None, provider=provider).run(inputs)
    inside.add(inputs, model.run(inputs), served)
    assert inside.comparison is not None
    assert inside.free_running is not None
    assert inside.boundaries is not None
    entries = {name: integers for name, integers in inside.session.trace(inputs).items() if name in model.entries}
    replayed = model.follow(inputs, entries).outputs
    return GraphComparison(
        inside.comparison.results(),
        inside.free_running.results(),
        inside.boundaries.results(),
        {name: _share(replayed[name], values) for name, values in served.items()},
        tuple(intermediate.name for intermediate in observable.hidden),
    )


def _share(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    """Return the greatest difference of an output as a share of its greatest finite value; equal NaN do not differ."""
    if wanted.shape != got.shape:
        return math.inf
    if wanted.dtype.kind not in "fc":
        return float(np.count_nonzero(wanted != got)) / max(1, wanted.size)
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    difference = np.abs(np.where(same, 0, wanted) - np.where(same, 0, got)).max(initial=0.0)
    return float(difference) / (float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)) or 1.0)
