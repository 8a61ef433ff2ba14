"""Free the batch dimension of an ONNX network that was written for a fixed number of samples."""

from dataclasses import replace

import onnx

from cpt_deploy.onnx_graph.reading.freeing import Freeing
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.simplify import simplify
from cpt_deploy.signature import BATCH


def fixed_batch(network: OnnxNetwork) -> int | None:
    """Return the number of samples that all inputs of a network are fixed to; None if there is no such number."""
    sizes = {(network.shape(value.name) or (None,))[0] for value in network.inputs}
    return sizes.pop() if len(sizes) == 1 else None


def with_free_batch(network: OnnxNetwork) -> OnnxNetwork:
    """Return a network that takes any number of samples, as far as constants of the old number can be replaced.

    Whether the network now computes each sample as before has to be tried, since its operators may join samples.

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
    if not batch:
        renamed = OnnxNetwork.from_model(model, name=network.name)
        return replace(network, inputs=renamed.inputs, outputs=renamed.outputs)
    freeing = Freeing(network, batch)
    nodes = [new for node in model.graph.node for new in freeing.freed(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(freeing.added.values())
    del model.graph.value_info[:]
    freed = OnnxNetwork.from_model(_simplified(model), name=network.name)
    return replace(freed, original=freed.to_model().SerializeToString())


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a simplified model; sizes of its outputs that followed from the old number are inferred anew."""
    for output in model.graph.output:
        for size in list(output.type.tensor_type.shape.dim)[1:]:
            if not size.HasField("dim_value"):
                size.Clear()
    return simplify(model)
