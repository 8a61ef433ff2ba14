"""Count the operators of a frozen graph that compute in float, and their share of the multiply-accumulates."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Float
from cpt_deploy.quantization.graph.signature import zeros_of

_MOVING = frozenset(
    {
        "alias", "cat", "chunk", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "flip", "index",
        "narrow", "pad", "permute", "repeat", "reshape", "reshape_as", "roll", "select", "slice", "split",
        "split_with_sizes", "squeeze", "stack", "sym_size", "to", "transpose", "unbind", "unflatten", "unsqueeze",
        "view",
    }
)  # fmt: skip


@dataclass(frozen=True)
class FloatCosts:
    """The float operators and multiply-accumulates of a network.

    Args:
        operators: Number of calls of each PyTorch operator in float, by name, except those that only move values.
        integer_macs: Multiply-accumulates of one input in the layers, which run on integers.
        float_macs: Those in float, of attention for example.
    """

    operators: dict[str, int]
    integer_macs: int
    float_macs: int

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that run on integers, 0 to 1."""
        return self.integer_macs / max(1, self.integer_macs + self.float_macs)


def float_costs(graph: IntegerGraph) -> FloatCosts:
    """Measure the float operators and multiply-accumulates of a graph; its executor runs once, on zeros."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton and, at the first operator, the compiler

    executor = IntegerExecutor(graph).eval()
    # only PyTorch's plain form of attention is counted, as two matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        executor(*zeros_of(graph.signature, 1))
    layers = {f"{type(executor).__name__}._layers.{i}" for i in range(len(graph.weighted()))}
    operations = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    integer = sum(operations.get(name, 0) for name in layers)
    return FloatCosts(float_operators(graph), integer // 2, (operations.get("Global", 0) - integer) // 2)


def float_operators(graph: IntegerGraph) -> dict[str, int]:
    """Return the number of calls of each PyTorch operator in float, by name, the most frequent first."""
    names = [
        operation.target.split(".")[1]
        for operation in graph.operations
        if isinstance(operation, Float) and operation.target.startswith("aten.")
    ]
    return dict(Counter(name for name in names if name not in _MOVING).most_common())
