"""Parts that ONNX graphs of language models share: constants by name, rows of a table, products of codes.

A product is QuantizeLinear (below 8 bits with a Clip of the codes), MatMulInteger, and from there on floats. The
integer operators stand in the graph as they are, so what is computed in integers does not depend on what a runtime
fuses; weights are int8 (I, O), one scale a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.freezing.language.parts import IntegerLinear, IntegerTable

OPSET, IR_VERSION = 19, 9


@dataclass
class GraphBuilder:
    """Collects nodes and constants."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], outputs: Sequence[str] | str, **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0]

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add a constant, once, and return its name."""
        self.constants.setdefault(name, value)
        return name

    def rows(self, table: IntegerTable, tokens: str, output: str) -> str:
        """Look rows up, float32 (..., E), of tokens (...)."""
        codes = self.constant(f"{table.name}.weight", table.codes)
        scales = self.constant(f"{table.name}.weight_scale", table.scales.reshape(-1, 1))
        gathered = self.add("Gather", [codes, tokens], f"{output}.codes", axis=0)
        floats = self.add("Cast", [gathered], f"{output}.unscaled", to=TensorProto.FLOAT)
        factors = self.add("Gather", [scales, tokens], f"{output}.scales", axis=0)
        return self.add("Mul", [floats, factors], output)

    def product(self, linear: IntegerLinear, x: str) -> str:
        """Multiply codes of a float input; the output is float32 (..., O), the integers are NAME.codes and .sums."""
        name, grid = linear.name, linear.grid
        scale = self.constant(f"{name}.input_scale", np.array(grid.scale, np.float32))
        zero = self.constant(f"{name}.input_zero_point", np.array(grid.zero_point, np.uint8))
        codes = self.add("QuantizeLinear", [x, scale, zero], f"{name}.{'codes' if grid.levels == 255 else 'unclipped'}")
        if grid.levels < 255:
            limits = [
                self.constant("code.0", np.array(0, np.uint8)),
                self.constant(f"code.{grid.levels}", np.array(grid.levels, np.uint8)),
            ]
            codes = self.add("Clip", [codes, *limits], f"{name}.codes")
        # A column is an output channel here; weights of its own memory order keep the file and the trained codes alike.
        weight = self.constant(f"{name}.weight", np.ascontiguousarray(linear.codes.T))
        sums = self.add("MatMulInteger", [codes, weight, zero], f"{name}.sums")
        floats = self.add("Cast", [sums], f"{name}.unscaled", to=TensorProto.FLOAT)
        factors = self.constant(f"{name}.factors", linear.factors)
        if linear.bias is None:
            return self.add("Mul", [floats, factors], f"{name}.output")
        scaled = self.add("Mul", [floats, factors], f"{name}.scaled")
        return self.add("Add", [scaled, self.constant(f"{name}.bias", linear.bias)], f"{name}.output")

    def graph(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """Return the graph."""
        initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in self.constants.items()]
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), initializers)


def value(name: str, kind: int, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    """Return the declaration of an input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def serialized(graph: onnx.GraphProto, metadata: dict[str, str]) -> bytes:
    """Return a model of ONNX' own operators, checked."""
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="cpt-deploy"
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
