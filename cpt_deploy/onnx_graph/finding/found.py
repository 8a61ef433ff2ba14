"""What is found in an ONNX network: operators that are one integer operation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.quantization.folding import Floats

Kind = Literal[
    "convolution", "transposed", "connected", "channelwise", "add", "multiply", "concatenate", "global_average",
    "average", "table", "movement",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """Operators that are one integer operation.

    Attributes:
        kind: What it becomes.
        nodes: Positions of its operators, the one that computes first.
        inputs: Tensors that it reads, without constants.
        output: Tensor that it computes.
        weight: Weights with output channels first, float64; for a channelwise operation None.
        factor: Factor of each output channel, float64 (O,); absorbed BatchNorm and arithmetic with constants.
        offset: What is added after it, float64 (O,).
        clamped: Whether it ends with a clamp at 0 (and maybe at an upper bound, which its range has).
        attributes: Attributes of the computing operator.
        parameters: Parameters of a table's function.
    """

    kind: Kind
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    output: str
    weight: Floats | None = None
    factor: Floats | None = None
    offset: Floats | None = None
    clamped: bool = False
    attributes: Mapping[str, Any] | None = None
    parameters: tuple[float, ...] = ()

    def without_clamp(self, network: OnnxNetwork) -> "Found":
        """Return the operation without the clamp that it ends with."""
        if not self.clamped or len(self.nodes) < 2:
            return self
        nodes = self.nodes[:-1]
        return replace(self, nodes=nodes, output=network.nodes[nodes[-1]].output[0], clamped=False)

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, transposed or not."""
        return self.kind in ("convolution", "transposed")

    def channel_axis(self, rank: int) -> int:
        """Return the axis of the channels that a layer multiplies, of an input of so many dimensions."""
        return rank - 1 if self.kind == "connected" else 1

    @property
    def has_weights(self) -> bool:
        """Whether it is a layer."""
        return self.is_convolution or self.kind == "connected"
