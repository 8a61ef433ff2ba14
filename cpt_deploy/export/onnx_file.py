"""Export a trained model as a single ONNX file, for deployments without a bundle."""

from pathlib import Path

from cpt_deploy.bundle.directories import replace_files
from cpt_deploy.errors import DataError
from cpt_deploy.integer import IntegerGraph, freeze
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizedModel, WeightBits


def export_onnx(
    model: QuantizedModel,
    path: Path | str,
    *,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    opset: int | None = None,
) -> IntegerGraph:
    """Freeze a model to integers and write it as an ONNX file with QuantizeLinear and DequantizeLinear.

    Its integers are the same on every x86 and Arm processor, unless `make_native(model)` was called before calibration.

    Args:
        model: A trained model, calibrated at the bits to be exported.
        path: The file; an existing one is replaced atomically.
        weight_bits: Bits of the scheduled weights, or by layer; None is the model's max_bits.
        activation_bits: Bits of the scheduled activations; None is the model's max_bits.
        opset: ONNX opset, 13 to 25; None is the lowest with the smallest types for the weights.

    Returns:
        The integer graph that the file computes: `IntegerExecutor(graph)` runs it.

    Raises:
        UsageError: If the bits or the opset are out of range.
        ConversionError: If the model has seen no data, or an operation has no integer form.
        DataError: If the file cannot be written.
    """
    path = Path(path)
    graph = freeze(model, weight_bits=weight_bits, activation_bits=activation_bits)
    try:
        replace_files(path.parent, {path.name: write_onnx(graph, opset=opset)})
    except OSError as error:
        raise DataError(f"Expected to write {path}, but got: {error.strerror or error}") from error
    return graph
