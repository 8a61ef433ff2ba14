"""Every integer of a frozen graph against onnxruntime's, for a graph of any signature."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.validation.comparison import IntegerComparison, TensorResult
from cpt_deploy.validation.integers.intermediate_outputs import with_intermediate_outputs

if TYPE_CHECKING:
    from cpt_deploy.integer import IntegerGraph


@dataclass(frozen=True)
class GraphComparison:
    """How the integers of a graph compare with onnxruntime's.

    Attributes:
        tensors: What integers compute, and results of layers that are real values, each from the codes that onnxruntime
            had where integers begin. Here nothing may differ.
        free_running: The codes of all tensors where the executor computes operations in float itself; their last places
            may differ.
        outputs: By name, the greatest difference of an output, as a share of the greatest value, from the same codes.
        hidden: Tensors that could not be looked at, since as outputs they would change what onnxruntime runs.
    """

    tensors: tuple[TensorResult, ...]
    free_running: tuple[TensorResult, ...]
    outputs: Mapping[str, float]
    hidden: tuple[str, ...]

    @property
    def mismatches(self) -> int:
        """How many integers differ."""
        return sum(tensor.mismatches for tensor in self.tensors)


def compare_integers(
    graph: "IntegerGraph", onnx_file: Path | bytes, inputs: Mapping[str, npt.NDArray[Any]], *, provider: str = "cpu"
) -> GraphComparison:
    """Run a graph's executor and its ONNX file on the same inputs, and compare every quantized tensor.

    Args:
        graph: What `freeze` made.
        onnx_file: What `write_onnx` made of it: the file or its content.
        inputs: A batch, by the names of the graph's signature.
        provider: The execution provider of onnxruntime.

    Raises:
        UsageError: If the inputs are not those of the graph.
    """
    import torch  # everything else here works without it

    from cpt_deploy.integer import IntegerExecutor
    from cpt_deploy.integer.graph import product_units, reached_from

    file = onnx_file if isinstance(onnx_file, bytes) else onnx_file.read_bytes()
    units = product_units(graph)
    observable = with_intermediate_outputs(file, provider, units)
    session = open_session(observable.model, provider=provider)
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, dict(inputs)), strict=True))

    executor = IntegerExecutor(graph)
    given = {name: torch.from_numpy(x) for name, x in inputs.items()}
    codes = {name: torch.from_numpy(got[name]) for name in graph.entries if name in got}
    replayed = {name: values.numpy() for name, values in executor.trace(given, codes).items()}
    own = {name: values.numpy() for name, values in executor.trace(given).items()}

    judged = {*graph.tensors, *units} - reached_from(graph, set(graph.entries) - codes.keys()) - set(graph.entries)
    exact = IntegerComparison(
        [intermediate for intermediate in observable.intermediates if intermediate.name in judged], units
    )
    exact.add(replayed, got)
    free = IntegerComparison(
        [intermediate for intermediate in observable.intermediates if intermediate.name in graph.tensors]
    )
    free.add(own, got)
    outputs = {}
    for tensor, made in zip(graph.signature.outputs, graph.outputs, strict=True):
        wanted = replayed[made]
        if made in graph.tensors:
            quantized = graph.tensors[made]
            wanted = (wanted.astype(np.float32) - np.float32(quantized.zero_point)) * np.float32(quantized.scale)
        outputs[tensor.name] = _difference(wanted, got[tensor.name])
    return GraphComparison(
        exact.results(), free.results(), outputs, tuple(intermediate.name for intermediate in observable.hidden)
    )


def _difference(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    """Return the greatest difference of an output as a share of its greatest finite value; equal NaN do not differ."""
    if wanted.dtype.kind not in "fc":
        return float(np.count_nonzero(wanted != got)) / max(1, wanted.size)
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    difference = np.abs(np.where(same, 0, wanted) - np.where(same, 0, got)).max(initial=0.0)
    return float(difference) / (float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)) or 1.0)
