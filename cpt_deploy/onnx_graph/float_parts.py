"""Write the float operations of a frozen graph to ONNX by `torch.onnx`, with placeholders for the integer ones.

The whole graph is exported once, with one symbol for the batch size, so that shapes agree everywhere. The placeholder
of each integer operation is an operator `StandIn`, which the writer of integer graphs replaces.
"""

import functools
import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnxscript import values as onnx_values
from torch import Tensor, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import (
    Constant,
    Convolution,
    Embed,
    Float,
    FullyConnected,
    Operation,
    Quantize,
    Recurrent,
    Reshape,
    Slice,
    Transpose,
)
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.onnx_graph.float_forms import run, translations
from cpt_deploy.onnx_graph.nodes import DOMAIN
from cpt_deploy.quantization.graph.signature import dims_of, zeros_of

#: Prefixes of the names of the skeleton's inputs and outputs, which no other name in it has.
_GIVEN, _MADE = "cpt_input:", "cpt_output:"
#: End of a slice that reaches to the end of the axis.
_LAST = 2**63 - 1


@torch.library.custom_op("cpt_deploy::stand_in", mutates_args=())
def _stand_in(inputs: list[Tensor], key: str, keep: int, tail: list[int]) -> Tensor:
    """Represent the operation with output `key`, of shape: the first `keep` sizes of its input, then `tail`."""
    return inputs[0].new_zeros([*inputs[0].shape[:keep], *tail], dtype=torch.float32)


@_stand_in.register_fake
def _(inputs: list[Tensor], key: str, keep: int, tail: list[int]) -> Tensor:
    return inputs[0].new_empty([*inputs[0].shape[:keep], *tail], dtype=torch.float32)


@torch.library.custom_op("cpt_deploy::stand_in_steps", mutates_args=())
def _stand_in_steps(inputs: list[Tensor], key: str) -> list[Tensor]:
    """Represent the steps of a recurrent layer with output `key`."""
    return _shaped_steps(inputs)


@_stand_in_steps.register_fake
def _(inputs: list[Tensor], key: str) -> list[Tensor]:
    return _shaped_steps(inputs)


def _shaped_steps(inputs: list[Tensor]) -> list[Tensor]:
    projected, *state = inputs
    return [projected.new_empty(*projected.shape[:2], state[0].shape[1]), *(torch.empty_like(part) for part in state)]


class _Skeleton(nn.Module):
    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__()
        self.graph = graph
        constants = [operation for operation in graph.operations if isinstance(operation, Constant)]
        self.index = {operation.output: f"constant_{i}" for i, operation in enumerate(constants)}
        for operation in constants:
            self.register_buffer(self.index[operation.output], torch.from_numpy(operation.value.copy()))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Any] = dict(zip((t.name for t in self.graph.signature.inputs), given, strict=True))
        for operation in self.graph.operations:
            inputs = [values[name] for name in operation.inputs]
            values[operation.output] = self._run(operation, inputs)
        return tuple(values[name] for name in self.graph.outputs)

    def _run(self, operation: Operation, inputs: list[Any]) -> Any:
        match operation:
            case Constant():
                return self.get_buffer(self.index[operation.output])
            case Float():
                return run(operation, inputs)
            case Recurrent():
                return torch.ops.cpt_deploy.stand_in_steps(inputs, operation.output)
            case Quantize():
                keep, tail = inputs[0].dim(), []
            case FullyConnected() if operation.output not in self.graph.tensors:
                keep, tail = inputs[0].dim() - 1, [len(operation.codes)]
            case Embed():
                keep, tail = inputs[0].dim(), [operation.codes.shape[1]]
            case _:
                keep, tail = 1, _sizes(operation, inputs[0], self.graph.tensors[operation.output])
        return torch.ops.cpt_deploy.stand_in(inputs, operation.output, keep, tail)


def _sizes(operation: Operation, x: Tensor, output: QuantizedTensor) -> list[Any]:
    """Return the sizes of an integer operation's output without the batch; free ones follow from its input's."""
    before: list[Any] = list(x.shape)
    sizes = before
    match operation:
        case Convolution():
            dimensions = len(operation.strides)
            pads = zip(operation.pads[:dimensions], operation.pads[dimensions:], strict=True)
            windows = zip(operation.codes.shape[2:], operation.dilations, operation.strides, strict=True)
            sizes = [
                *before[:2],
                *(
                    (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1
                    for size, (begin, end), (kernel, dilation, stride) in zip(before[2:], pads, windows, strict=True)
                ),
            ]
        case Transpose():
            sizes = [before[axis] for axis in operation.permutation]
        case Slice():
            start, end = operation.start, operation.end
            size = before[operation.axis]
            made = (size if end == _LAST else size + end if end < 0 else end) - start
            sizes = [*before[: operation.axis], made, *before[operation.axis + 1 :]]
        case Reshape() if operation.sizes:
            known = [before[axis] if size == 0 else size for axis, size in enumerate(operation.sizes)]
            rest = math.prod(before) // math.prod(size for size in known if not isinstance(size, int) or size > 0)
            sizes = [rest if isinstance(size, int) and size < 0 else size for size in known]
    return [found if size is None else size for size, found in zip(output.shape, sizes[1:], strict=False)]


@functools.cache
def _stand_in_operator(name: str, outputs: int) -> Any:
    kind = onnx.defs.OpSchema
    variadic = kind.FormalParameterOption.Variadic
    onnx.defs.register_schema(
        kind(
            name,
            DOMAIN,
            1,
            inputs=[kind.FormalParameter("inputs", "T", param_option=variadic)],
            outputs=[kind.FormalParameter(f"output_{i}", "R") for i in range(outputs)],
            type_constraints=[
                ("T", ["tensor(float)", "tensor(int64)", "tensor(uint8)"], ""),
                ("R", ["tensor(float)"], ""),
            ],
            attributes=[kind.Attribute("key", kind.AttrType.STRING, "")],
        )
    )
    return onnx_values.Opset(DOMAIN, 1)


def write_skeleton(graph: IntegerGraph, opset: int) -> onnx.ModelProto:
    """Return a graph as ONNX with a `StandIn` (attribute `key`: the output's name) for each integer operation.

    No value in it has the name of an input or output of the signature.

    Args:
        graph: A frozen graph with float operations.
        opset: ONNX opset, at least `FLOAT_OPSET`.

    Raises:
        ConversionError: If `torch.onnx` has no form for a float operation.
    """
    operators, several = _stand_in_operator("StandIn", 1), {3: "StandInLstm", 2: "StandInGru"}

    def stand_in(inputs: Any, key: str, keep: int, tail: Any) -> Any:
        return operators.StandIn(*inputs, key=key)

    def stand_in_steps(inputs: Any, key: str) -> Any:
        name = several[len(inputs)]
        return getattr(_stand_in_operator(name, len(inputs)), name)(*inputs, key=key)

    example, shapes = zeros_of(graph.signature, 2, graph.signature.sizes(1)), dims_of(graph.signature, together=True)
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside of the exporter
            program = torch.export.export(_Skeleton(graph).eval(), example, dynamic_shapes=(shapes,))
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=[f"{_GIVEN}{i}" for i in range(len(example))],
                output_names=[f"{_MADE}{i}" for i in range(len(graph.outputs))],
                custom_translation_table={
                    torch.ops.cpt_deploy.stand_in.default: stand_in,
                    torch.ops.cpt_deploy.stand_in_steps.default: stand_in_steps,
                    **translations(opset),
                },
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ConversionError(
            f"Expected float operations that torch.onnx can write, but got: {cause}",
            hint="replace the operation in the model, or exclude it from the exported model",
        ) from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert exported is not None
    model = exported.model_proto
    _avoid(graph.signature.names, model.graph)
    return model


def _avoid(taken: Sequence[str], skeleton: onnx.GraphProto) -> None:
    """Rename values that `torch.onnx` named as an input or output of the network, after the operator: "mean"."""
    used = {*taken, *(name for node in skeleton.node for name in node.output), *(t.name for t in skeleton.initializer)}
    renamed: dict[str, str] = {}
    for name in taken:
        renamed[name] = f"{name}_value"
        while renamed[name] in used:
            renamed[name] += "_"
        used.add(renamed[name])
    for node in skeleton.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in skeleton.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
