"""Build the common parts of ONNX graphs of language models: constants by name, rows of a table, integer products.

A product is QuantizeLinear (below 8 bits with a Clip of the integers), MatMulInteger, and then float operators. The
graph contains the integer operators explicitly, so the integers do not depend on a runtime's fusions. Weights are int8
(I, O), with one scale per column. Those of few bits are packed and cast to int8, which onnxruntime does once, when it
loads the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.errors import UsageError
from cpt_deploy.integer.language.model import IntegerLanguageModel, weighted_parts
from cpt_deploy.integer.language.parts import IntegerLinear, IntegerTable
from cpt_deploy.onnx_graph.packing import packed_type, packing_opset

LEAST_OPSET, MOST_OPSET = 19, 25


def chosen_opset(model: IntegerLanguageModel, opset: int | None = None) -> int:
    """Return the opset of a model's file.

    Args:
        model: The frozen model.
        opset: The requested opset; None is the lowest with the smallest types for the weights: 19, with weights of 3 or
            4 bits 21, with weights of 2 bits 25.

    Raises:
        UsageError: If the graphs cannot be written in the requested opset.
    """
    if opset is None:
        return packing_opset((part.bits for part in weighted_parts(model)), LEAST_OPSET)
    if not LEAST_OPSET <= opset <= MOST_OPSET:
        raise UsageError(f"Expected an opset from {LEAST_OPSET} to {MOST_OPSET} for a language model, but got {opset}")
    return opset


@dataclass
class GraphBuilder:
    """Collects nodes and constants.

    Args:
        opset: ONNX opset of the file.
    """

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], outputs: Sequence[str] | str, **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0]

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add a constant unless it is there already, and return its name."""
        self.constants.setdefault(name, value)
        return name

    def codes(self, name: str, part: IntegerTable | IntegerLinear, codes: npt.NDArray[np.int8]) -> str:
        """Add the weights of a part, packed where the opset has a type for their bits; return their name as int8."""
        packed = packed_type(part.bits, self.opset)
        if packed is None:
            return self.constant(name, codes)
        source = self.constant(f"{name}.packed", codes.astype(packed))
        return self.add("Cast", [source], name, to=TensorProto.INT8)

    def rows(self, table: IntegerTable, tokens: str, output: str) -> str:
        """Add the lookup of rows, float32 (..., E), for tokens (...)."""
        codes = self.codes(f"{table.name}.weight", table, table.codes)
        scales = self.constant(f"{table.name}.weight_scale", table.scales.reshape(-1, 1))
        gathered = self.add("Gather", [codes, tokens], f"{output}.codes", axis=0)
        floats = self.add("Cast", [gathered], f"{output}.unscaled", to=TensorProto.FLOAT)
        factors = self.add("Gather", [scales, tokens], f"{output}.scales", axis=0)
        return self.add("Mul", [floats, factors], output)

    def product(self, linear: IntegerLinear, x: str) -> str:
        """Add an integer product of a float input, to float32 (..., O); its integers are NAME.codes and NAME.sums."""
        name, qparams = linear.name, linear.qparams
        scale = self.constant(f"{name}.input_scale", np.array(qparams.scale, np.float32))
        zero = self.constant(f"{name}.input_zero_point", np.array(qparams.zero_point, np.uint8))
        codes = self.add(
            "QuantizeLinear", [x, scale, zero], f"{name}.{'codes' if qparams.quant_max == 255 else 'unclipped'}"
        )
        if qparams.quant_max < 255:
            limits = [
                self.constant("code.0", np.array(0, np.uint8)),
                self.constant(f"code.{qparams.quant_max}", np.array(qparams.quant_max, np.uint8)),
            ]
            codes = self.add("Clip", [codes, *limits], f"{name}.codes")
        # Columns are output channels here; contiguous weights make the file's integers equal to the trained ones.
        weight = self.codes(f"{name}.weight", linear, np.ascontiguousarray(linear.codes.T))
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


def serialized(graph: onnx.GraphProto, opset: int, metadata: dict[str, str]) -> bytes:
    """Return a model that only has standard ONNX operators, after checking it."""
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets), producer_name="cpt-deploy"
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
