"""Free the batch dimension of an ONNX network that was written for a fixed number of samples."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, is_standard
from cpt_deploy.onnx_graph.reading.simplify import simplify
from cpt_deploy.signature import BATCH


def fixed_batch(network: OnnxNetwork) -> int | None:
    """Return the number of samples that all inputs of a network are fixed to; None if there is no such number."""
    sizes = {(network.shape(value.name) or (None,))[0] for value in network.inputs}
    return sizes.pop() if len(sizes) == 1 else None


def with_free_batch(network: OnnxNetwork) -> OnnxNetwork:
    """Return a network that takes any number of samples, as far as constants of the old number can be replaced.

    These are the sizes in `Reshape` and `Resize`. Whether the network now computes each sample as before has to be
    tried, since its operators may join samples.

    Args:
        network: A network as `read_onnx` returns it. If its first sizes are free, they only get one name.
    """
    batch = fixed_batch(network)
    model = network.to_model()
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        # Exporters name a free first size of outputs otherwise than that of inputs, or write -1.
        if len(sizes) and (sizes[0].dim_value == batch if batch else sizes[0].dim_value < 1):
            sizes[0].dim_param = BATCH
    if batch is None:
        renamed = OnnxNetwork.from_model(model, name=network.name)
        return replace(network, inputs=renamed.inputs, outputs=renamed.outputs)
    added: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        made = network.shape(node.output[0])
        if made and None not in made and made[0]:
            if is_standard(node, "Reshape") and network.array(node.input[0]) is None:
                _replace(node, 1, np.array([-1, *made[1:]], np.int64), added)
            elif is_standard(node, "Resize") and len(node.input) > 3 and network.array(node.input[3]) is not None:
                nodes += _sizes_of_any_batch(node, np.array(made[1:], np.int64), added)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(added.values())
    freed = OnnxNetwork.from_model(simplify(model), name=network.name)
    return replace(freed, original=freed.to_model().SerializeToString())


def _replace(
    node: onnx.NodeProto,
    place: int,
    values: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    added: dict[str, onnx.TensorProto],
) -> None:
    node.input[place] = f"{node.output[0]}_sizes"
    added[node.input[place]] = numpy_helper.from_array(values, node.input[place])


def _sizes_of_any_batch(
    node: onnx.NodeProto, rest: np.ndarray[tuple[int, ...], np.dtype[np.int64]], added: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Let a Resize read the size of its batch from its input; return the operators that do."""
    names = {part: f"{node.output[0]}_{part}" for part in ("shape", "first", "place", "rest", "sizes")}
    for part, values in (("place", np.array([0], np.int64)), ("rest", rest)):
        added[names[part]] = numpy_helper.from_array(values, names[part])
    node.input[3] = names["sizes"]
    return [
        helper.make_node("Shape", [node.input[0]], [names["shape"]]),
        helper.make_node("Gather", [names["shape"], names["place"]], [names["first"]]),
        helper.make_node("Concat", [names["first"], names["rest"]], [names["sizes"]], axis=0),
    ]
