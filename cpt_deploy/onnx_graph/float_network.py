"""Export a CPT model's network in float32, as the reference for size and latency."""

import copy
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from cpt_deploy.quantization.graph.signature import dims_of, zeros_of
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer, Requantize
from cpt_deploy.quantization.modules.layers import QuantizedLayer, without_quantizer
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent


def float_model(model: QuantizedModel) -> nn.Module:
    """Return the network of a CPT model without quantizers, in evaluation mode; parameters are copied."""
    network = copy.deepcopy(model.network)
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        module = network.get_submodule(str(node.target))
        if isinstance(module, ActivationQuantizer | Requantize):
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)
        elif isinstance(module, QuantizedRecurrent):
            from cpt_deploy.onnx_graph.float_recurrent import FloatRecurrent  # imports onnxscript

            network.set_submodule(str(node.target), FloatRecurrent(module))
        elif isinstance(module, QuantizedLayer):
            network.set_submodule(str(node.target), without_quantizer(module))
    network.graph.lint()
    network.recompile()
    network.delete_all_unused_submodules()
    return network.eval()


def write_float_onnx(model: QuantizedModel, *, opset: int = 18) -> bytes:
    """Return the float32 ONNX file of a CPT model's network, with a free batch dimension.

    Args:
        model: The trained model.
        opset: ONNX opset; PyTorch's exporter writes 18 and later.
    """
    from cpt_deploy.onnx_graph.float_recurrent import TRANSLATIONS

    network = float_model(model).cpu()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of the exporter do not concern the user
        program = torch.onnx.export(
            network,
            zeros_of(model.signature, 2, model.signature.sizes(1)),
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in model.signature.inputs],
            output_names=[tensor.name for tensor in model.signature.outputs],
            dynamic_shapes=dims_of(model.signature, together=True),
            verbose=False,
            custom_translation_table=TRANSLATIONS,
        )
        assert program is not None
        path = Path(folder) / "float.onnx"
        program.save(path)
        return path.read_bytes()
