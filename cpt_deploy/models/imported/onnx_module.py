"""Translate a simplified ONNX graph to a `torch.fx` module of operations that `prepare` supports."""

import re

import numpy as np
import torch
from torch import fx, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.models.imported.onnx_graph import Array, OnnxGraph, OnnxNode, Shape
from cpt_deploy.models.imported.onnx_operators import OPERATORS

_UNFIT = re.compile(r"[^0-9A-Za-z_.]+")


def build_module(graph: OnnxGraph) -> fx.GraphModule:
    """Return a module that computes a graph for any batch size.

    A module is named after its weights in the file if their name ends in ".weight", otherwise after its node.

    Raises:
        ConversionError: If an operator has no integer form; the message names the operator and its node.
    """
    builder = Builder(graph)
    for node in graph.nodes:
        builder.add(node)
    return builder.finish()


class Builder:
    """Collects the nodes of the new graph; the translations in `onnx_operators` add to it."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.onnx = graph
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._values: dict[str, fx.Node] = {graph.input: self._graph.placeholder("image")}

    def add(self, node: OnnxNode) -> None:
        """Translate one operator."""
        translate = OPERATORS.get(node.kind)
        if translate is None:
            hint = f"supported: {', '.join(sorted(OPERATORS))}"
            if "Linear" in node.kind or "Integer" in node.kind:
                hint = "the file is quantized already; give the float model that it was made from"
            raise ConversionError(f"Expected operators that have an integer form, but got {node.describe()}", hint=hint)
        results = translate(node, self)
        for name, value in zip(node.outputs, results if isinstance(results, list) else [results], strict=False):
            self._values[name] = value

    def finish(self) -> fx.GraphModule:
        """Return the module."""
        self._graph.output(self._values[self.onnx.output])
        module = fx.GraphModule(self._root, self._graph)
        module.graph.lint()
        return module

    # --- operands of operators ------------------------------------------------------------------------------------

    def value(self, node: OnnxNode, position: int = 0) -> fx.Node:
        """Return a computed operand.

        Raises:
            ConversionError: If it is a constant.
        """
        found = self._values.get(node.inputs[position])
        if found is None:
            raise ConversionError(
                f"Expected operand {position + 1} to be computed, but it is constant in {node.describe()}"
            )
        return found

    def constant(self, node: OnnxNode, position: int) -> Array | None:
        """Return a constant operand, or None if it is omitted or computed."""
        if position >= len(node.inputs) or not node.inputs[position]:
            return None
        return self.onnx.constants.get(node.inputs[position])

    def weights(self, node: OnnxNode, position: int) -> torch.Tensor:
        """Return a constant operand as a float32 tensor.

        Raises:
            ConversionError: If it is not constant.
        """
        array = self.constant(node, position)
        if array is None:
            raise ConversionError(f"Expected constant weights, but they are computed in {node.describe()}")
        return torch.from_numpy(np.array(array, dtype=np.float32))

    def shape(self, name: str, node: OnnxNode) -> Shape:
        """Return the shape of a tensor, batch dimension first.

        Raises:
            ConversionError: If it is unknown or does not begin with the batch dimension.
        """
        shape = self.onnx.shapes.get(name, ())
        if not shape or 0 in shape or shape[0] != self.onnx.batch:
            raise ConversionError(
                f"Expected tensors that begin with the batch, but got shape {shape or 'unknown'} at {node.describe()}"
            )
        return shape

    # --- results of operators -------------------------------------------------------------------------------------

    def module(self, node: OnnxNode, module: nn.Module, source: fx.Node | None = None, *, weights: int = 0) -> fx.Node:
        """Add a module and its call.

        Args:
            node: The operator that is translated.
            module: The module.
            source: Input of the module; the operator's first operand if None.
            weights: Index of the operand that names the module, 0 for none.
        """
        name = self._module_name(node, weights)
        parent = self._root
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(last, module)
        return self._graph.call_module(name, (self.value(node) if source is None else source,))

    def call(self, function: object, *arguments: object) -> fx.Node:
        """Add a function call."""
        return self._graph.call_function(function, arguments)  # type: ignore[arg-type]

    def method(self, name: str, *arguments: object) -> fx.Node:
        """Add a call of a method of the first argument."""
        return self._graph.call_method(name, arguments)  # type: ignore[arg-type]

    def _module_name(self, node: OnnxNode, weights: int) -> str:
        wanted = node.name
        if weights and node.inputs[weights].endswith(".weight"):
            wanted = node.inputs[weights].removesuffix(".weight")
        name = _UNFIT.sub("_", wanted).strip("_.") or node.kind
        name = ".".join(part or "_" for part in name.split("."))
        free, number = name, 1
        while self._taken(free):
            number += 1
            free = f"{name.replace('.', '_')}_{number}"
        return free

    def _taken(self, name: str) -> bool:
        """Return whether a name is that of a module, or lies inside of a module that is not a plain container."""
        parent = self._root
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                return False
            parent = getattr(parent, folder)
            if type(parent) is not nn.Module:
                return True
        return hasattr(parent, last)
