"""Execute the integer graph of a bundle, as the reference for onnxruntime's integers."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import MissingExtraError
from cpt_deploy.validation.comparison import Codes, Logits


class IntegerModel(Protocol):
    """Executes a frozen model and returns its intermediate integers."""

    def run(self, inputs: npt.NDArray[np.float32]) -> tuple[Logits, Mapping[str, Codes]]:
        """Return the logits, float32 (N, K), and the integers of each quantized tensor by its name in the ONNX graph.

        Args:
            inputs: Normalised images, float32 (N, C, H, W).
        """
        ...


class Replay(Protocol):
    """An integer model with operations in float, which can be replayed from a runtime's integers at its boundaries."""

    @property
    def entries(self) -> tuple[str, ...]:
        """The tensors that are quantized from real values, at the boundaries between float and integer parts."""
        ...

    @property
    def products(self) -> Mapping[str, float]:
        """The layers whose results are real numbers, with the min real value of one unit of their integer sums."""
        ...

    def follow(
        self, inputs: npt.NDArray[np.float32], entries: Mapping[str, Codes]
    ) -> tuple[Logits, Mapping[str, npt.NDArray[np.generic]]]:
        """Return logits, float32 (N, K), and integers of tensors and results of products by name.

        All are computed from the given integers at the boundaries.

        Args:
            inputs: Normalised images, float32 (N, C, H, W).
            entries: Integers at the boundaries. Integers computed from an omitted one are omitted from the result.
        """
        ...


class BundledIntegerModel:
    """The integer executor on the integer graph of a bundle (needs PyTorch).

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
        # Imported here, since everything else works without PyTorch and must not load it.
        from cpt_deploy.integer import IntegerExecutor, graph_from_bundle

        self._graph = graph_from_bundle(bundle)
        self._executor = IntegerExecutor(self._graph)

    def run(self, inputs: npt.NDArray[np.float32]) -> tuple[Logits, Mapping[str, Codes]]:
        """Execute a batch; see `IntegerModel.run`."""
        import torch

        traced = {name: tensor.numpy() for name, tensor in self._executor.trace(torch.from_numpy(inputs)).items()}
        codes = {name: values for name, values in traced.items() if name in self._graph.tensors}
        return self._logits(traced), codes

    @property
    def logit_scale(self) -> float | None:
        """Scale of the quantized logits; `None` if they are real numbers."""
        output = self._graph.tensors.get(self._graph.outputs[0])
        return None if output is None else output.scale

    def _logits(self, traced: Mapping[str, npt.NDArray[Any]]) -> Logits:
        output = self._graph.tensors.get(self._graph.outputs[0])
        if output is None:
            real: Logits = traced[self._graph.outputs[0]]
            return real
        # As in DequantizeLinear; running the executor a second time for its logits would double the time.
        centred = traced[output.name].astype(np.float32) - np.float32(output.zero_point)
        logits: Logits = centred * np.float32(output.scale)
        return logits

    @property
    def entries(self) -> tuple[str, ...]:
        """See `Follower.entries`."""
        return self._graph.entries

    @property
    def products(self) -> Mapping[str, float]:
        """See `Follower.products`."""
        from cpt_deploy.integer.graph import product_units

        return product_units(self._graph)

    def follow(
        self, inputs: npt.NDArray[np.float32], entries: Mapping[str, Codes]
    ) -> tuple[Logits, Mapping[str, npt.NDArray[np.generic]]]:
        """See `Follower.follow`."""
        import torch

        from cpt_deploy.integer.graph import reached_from

        given = {name: torch.from_numpy(codes) for name, codes in entries.items()}
        trace = self._executor.trace(torch.from_numpy(inputs), given)
        traced = {name: values.numpy() for name, values in trace.items()}
        left_out = reached_from(self._graph, set(self.entries) - set(entries))
        compared = {*self._graph.tensors, *self.products} - left_out - set(self.entries)
        return self._logits(traced), {name: values for name, values in traced.items() if name in compared}
