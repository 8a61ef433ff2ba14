"""Read the integer graph that a bundle stores beside its ONNX file, to check one against the other."""

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.integer.graph import IntegerGraph, from_dict


def graph_from_bundle(bundle: Bundle) -> IntegerGraph:
    """Rebuild the integer graph from `quantization.json` and `model.safetensors`; `model.onnx` is not read.

    Raises:
        BundleError: If the two files do not describe a graph.
    """
    tensors = bundle.load_tensors()
    try:
        return from_dict(bundle.quantization["graph"], tensors)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe the integer graph, but got: {error!r}",
            hint="export the bundle again",
        ) from error
