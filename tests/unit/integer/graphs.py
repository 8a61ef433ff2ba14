"""Integer graphs that tests write by hand."""

from collections.abc import Sequence

from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Operation, Quantize
from cpt_deploy.integer.tensors import QuantizedTensor
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME, Signature, TensorSpec


def graph_between(
    source: str, output: str, operations: Sequence[Operation], tensors: dict[str, QuantizedTensor]
) -> IntegerGraph:
    """Return a graph with one input, which is quantized to `source`, and one output."""
    given, made = (
        tuple(f"{name}_{axis}" if size is None else size for axis, size in enumerate(tensors[name].shape))
        for name in (source, output)
    )
    signature = Signature((TensorSpec(INPUT_NAME, "float32", given),), (TensorSpec(OUTPUT_NAME, "float32", made),))
    return IntegerGraph(signature, (output,), (Quantize((INPUT_NAME,), source), *operations), tensors)
