"""Write further formats of a model for a bundle, each compared with the integer executor first."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cpt_deploy.bundle import FORMATS
from cpt_deploy.errors import ConversionError
from cpt_deploy.export.programs import WRITERS, load_program
from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Recurrent
from cpt_deploy.onnx_graph.onnx_parts import read_parts


def write_formats(graph: IntegerGraph, formats: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the content of a graph's file in each format that PyTorch writes, by the format's name.

    Args:
        graph: The frozen network.
        formats: Names of `FORMATS`; those that every bundle has are skipped.
        inputs: All inputs by name, for which a file has to compute the executor's outputs.

    Raises:
        ConversionError: If the network cannot be written in a format, or its file computes other outputs.
    """
    arguments = [inputs[tensor.name] for tensor in graph.signature.inputs]
    expected = tree_leaves(IntegerExecutor(graph)(*arguments))
    files = {}
    for name in formats:
        if name not in WRITERS:
            continue
        title = FORMATS[name].title
        if name == "pt2" and graph.signature.free and any(isinstance(o, Recurrent) for o in graph.operations):
            raise ConversionError(
                f"Expected a network whose sizes are fixed for the {title}, in which the steps of recurrent layers are "
                f"written one by one, but {', '.join(graph.signature.free)} may vary",
                hint=f"{FORMATS['onnx'].file} takes any length; prepare(...) without dynamic_shapes fixes it",
            )
        if kept := [*read_parts(graph).kinds]:
            raise ConversionError(
                f"Expected a network whose operators all have a PyTorch form for the {title}, but {', '.join(kept)} "
                "stay as they are in the ONNX file",
                hint=f"{FORMATS['onnx'].file} has them",
            )
        if name == "torchscript" and graph.has_float_operations:
            raise ConversionError(
                "Expected a network that is integer from end to end for TorchScript, whose tracing fixes the batch "
                "size of operations in float, but parts of it compute in float",
                hint="--format pt2 takes it",
            )
        try:
            files[name] = WRITERS[name](graph)
            outputs = tree_leaves(load_program(name, files[name])(*arguments))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConversionError(
                f"Expected a model that PyTorch can write as {title}, but got: {reason}",
                hint=f"leave the format {name} out; {FORMATS['onnx'].file} does not depend on it",
            ) from error
        pairs = list(zip(outputs, expected, strict=True))
        if not all(torch.equal(got, wanted) for got, wanted in pairs):
            differing = sum(int((got != wanted).sum()) for got, wanted in pairs)
            raise ConversionError(
                f"Expected the {title} to give the executor's outputs, but {differing} of "
                f"{sum(wanted.numel() for wanted in expected)} values differ",
                hint=f"leave the format {name} out; {FORMATS['onnx'].file} does not depend on it",
            )
    return files
