"""Execute ONNX operators of a frozen graph, which stay as they are, by onnxruntime."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Movement, OnnxPart


class OnnxSessions:
    """The onnxruntime sessions of a graph's ONNX operators, opened at first use.

    Args:
        graph: A frozen graph.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        self._parts = {o.output: o for o in graph.operations if isinstance(o, OnnxPart | Movement)}
        self._sessions: dict[str, Any] = {}

    def run(self, output: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return all results of an operation.

        Args:
            output: The operation's (first) output.
            inputs: Its inputs, of the types that its operators expect.

        Raises:
            BundleError: If onnxruntime cannot load its operators.
        """
        if output not in self._sessions:
            content = self._parts[output].content.tobytes()
            self._sessions[output] = open_session(content, where=f"the operators that compute {output!r}")
        session = self._sessions[output]
        names = [entry.name for entry in session.get_inputs()]
        given = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
        return [_tensor(result) for result in session.run(None, given)]


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor; NumPy has two types of 64-bit integers, of which torch knows one."""
    same = array.view(np.dtype(f"{array.dtype.kind}8")) if array.dtype.char in "qQ" else array
    return torch.from_numpy(same)
