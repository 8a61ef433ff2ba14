"""Execute an integer graph, as the reference for onnxruntime's integers."""

import itertools
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.errors import MissingExtraError, how_to_install
from cpt_deploy.integer.graph import IntegerGraph, product_units, reached_from
from cpt_deploy.integer.stored import graph_from_bundle
from cpt_deploy.validation.accuracy.samples import Arrays


@dataclass(frozen=True, eq=False)
class Execution:
    """Result of executing a batch.

    Args:
        outputs: Outputs by name.
        integers: Integers of quantized tensors by their names in the ONNX graph; in a replay also the real results of
            layers that are not quantized.
        entries: In a replay, the executor's own integers at the boundaries, each computed from the given ones before it
            by the float operations between them.
    """

    outputs: Arrays
    integers: Arrays
    entries: Arrays = field(default_factory=dict)


class ExecutedGraph:
    """The integer executor on a graph (needs PyTorch); it can be replayed from a runtime's integers at its boundaries.

    Args:
        graph: The graph.

    Attributes:
        entries: The tensors that are quantized from real values, at the boundaries between float and integer parts.
        products: The layers whose results are real numbers, with the min real value of one unit of their integer sums.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        # Imported here, since everything else works without PyTorch and must not load it.
        from cpt_deploy.integer import IntegerExecutor

        self._graph = graph
        self._executor = IntegerExecutor(graph)
        self.entries, self.products = graph.entries, product_units(graph)

    def run(self, inputs: Arrays) -> Execution:
        """Execute a batch of inputs by name."""
        traced, _ = self._trace(inputs, {})
        return Execution(self._outputs(traced), _only(traced, self._graph.tensors))

    @property
    def output_scales(self) -> dict[str, float]:
        """Scales of the quantized outputs by name; real outputs have none."""
        graph = self._graph
        return {
            tensor.name: graph.tensors[made].scale
            for tensor, made in zip(graph.signature.outputs, graph.outputs, strict=True)
            if made in graph.tensors
        }

    def follow(self, inputs: Arrays, entries: Arrays) -> Execution:
        """Execute a batch from the given integers at the boundaries.

        Args:
            inputs: Inputs by name.
            entries: Integers at the boundaries. Integers computed from an omitted one are omitted from the result.
        """
        traced, own = self._trace(inputs, entries)
        left_out = reached_from(self._graph, set(self.entries) - set(entries))
        compared = {*self._graph.tensors, *self.products} - left_out - set(self.entries)
        known = set(
            itertools.takewhile(lambda name: name in entries, self.entries)
        )  # later ones may follow from others
        return Execution(self._outputs(traced), _only(traced, compared), _only(own, known))

    def _trace(
        self, inputs: Arrays, entries: Arrays
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """Return the tensors of an execution, and the executor's own values of the entries that are given."""
        import torch

        given, fixed = (
            {name: torch.from_numpy(array) for name, array in arrays.items()}
            for arrays in (checked_inputs(self._graph.signature, inputs), entries)
        )
        own: dict[str, torch.Tensor] = {}
        traced = self._executor.trace(given, fixed, own)
        stored = {name: torch.int8 if self._graph.tensors[name].signed else torch.uint8 for name in own}
        return (
            {name: tensor.numpy() for name, tensor in traced.items()},
            {name: tensor.to(stored[name]).numpy() for name, tensor in own.items()},
        )

    def _outputs(self, traced: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs; running the executor a second time for them would double the time."""
        outputs: dict[str, npt.NDArray[Any]] = {}
        for tensor, made in zip(self._graph.signature.outputs, self._graph.outputs, strict=True):
            quantized = self._graph.tensors.get(made)
            values = traced[made]
            if quantized is not None:  # as in DequantizeLinear
                values = (values.astype(np.float32) - np.float32(quantized.zero_point)) * np.float32(quantized.scale)
            outputs[tensor.name] = values
        return outputs


def bundled_integer_model(bundle: Bundle) -> ExecutedGraph:
    """Return the integer executor on the integer graph of a bundle.

    Raises:
        MissingExtraError: If PyTorch is not installed.
        BundleError: If the bundle's graph is damaged.
    """
    if find_spec("torch") is None:
        raise MissingExtraError(
            "Expected PyTorch for the integer executor, but it is not installed",
            hint=f"{how_to_install('train')}, or validate without the executor",
        )
    return ExecutedGraph(graph_from_bundle(bundle))


def _only(arrays: Arrays, names: Any) -> dict[str, npt.NDArray[Any]]:
    return {name: array for name, array in arrays.items() if name in names}
