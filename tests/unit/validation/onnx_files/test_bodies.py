"""What is inside of control flow is not looked at, which the inspection says."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.validation.onnx_files.files import read_file
from cpt_deploy.validation.onnx_files.inspection import inspect_file


def test_operators_inside_of_branches_are_named(tmp_path: Path) -> None:
    def branch(name: str, operators: list[str]) -> object:
        nodes = [
            helper.make_node(kind, [f"{name}_{i}" if i else "x"], [f"{name}_{i + 1}"])
            for i, kind in enumerate(operators)
        ]
        made = helper.make_tensor_value_info(f"{name}_{len(operators)}", TensorProto.FLOAT, [2, 4])
        return helper.make_graph(nodes, name, [], [made])

    nodes = [
        helper.make_node("Greater", ["limit", "zero"], ["condition"]),
        helper.make_node(
            "If", ["condition"], ["y"], then_branch=branch("then", ["Relu", "Exp"]), else_branch=branch("else", ["Neg"])
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4]),
        helper.make_tensor_value_info("limit", TensorProto.FLOAT, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph(nodes, "g", inputs, [output], [numpy_helper.from_array(np.float32(0), "zero")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert inspect_file(read_file(tmp_path / "m.onnx")).note == "3 operators inside of If were not looked at"
