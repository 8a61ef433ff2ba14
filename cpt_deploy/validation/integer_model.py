"""The integer model that a bundle was exported from, executed: what onnxruntime's integers are compared with."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import MissingExtraError
from cpt_deploy.validation.comparison import Codes, Logits


class IntegerModel(Protocol):
    """Executes a frozen model and shows the integers inside."""

    def run(self, inputs: npt.NDArray[np.float32]) -> tuple[Logits, Mapping[str, Codes]]:
        """Return the logits, float32 (N, K), and the codes of each quantized tensor by its name in the ONNX graph.

        Args:
            inputs: Normalised images, float32 (N, C, H, W).
        """
        ...


class BundledIntegerModel:
    """The integer executor on the graph that a bundle holds (needs PyTorch).

    Args:
        bundle: The bundle.

    Raises:
        MissingExtraError: If PyTorch is not installed.
        BundleError: If the bundle's graph is damaged.
    """

    def __init__(self, bundle: Bundle) -> None:
        if find_spec("torch") is None:
            raise MissingExtraError(
                "Expected PyTorch for the integer executor, but it is not installed",
                hint="pip install 'cpt-deploy[train]', or validate without the executor",
            )
        # Everything else here works without PyTorch and shall not load it.
        from cpt_deploy.freezing import IntegerExecutor, graph_from_bundle

        self._graph = graph_from_bundle(bundle)
        self._executor = IntegerExecutor(self._graph)

    def run(self, inputs: npt.NDArray[np.float32]) -> tuple[Logits, Mapping[str, Codes]]:
        """Execute a batch; see `IntegerModel.run`."""
        import torch

        codes = {name: tensor.numpy() for name, tensor in self._executor.trace(torch.from_numpy(inputs)).items()}
        output = self._graph.tensors[self._graph.output]
        # As DequantizeLinear; running the executor a second time for its logits would take as long as the first.
        centred = codes[output.name].astype(np.float32) - np.float32(output.zero_point)
        logits: Logits = centred * np.float32(output.scale)
        return logits, codes
