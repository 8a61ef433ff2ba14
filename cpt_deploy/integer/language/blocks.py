"""An integer Transformer block: LayerNorms in float32, and products of quantized values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from cpt_deploy.integer.language.parts import Arrays, Floats, IntegerLinear, frozen_product


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm of the last axis, in float32.

    Args:
        name: Its module path.
        weight: float32 (F,).
        bias: float32 (F,).
        epsilon: Added to the variance.
    """

    name: str
    weight: Floats
    bias: Floats
    epsilon: float

    def __call__(self, x: Floats) -> Floats:
        """Return values of mean 0 and variance 1, scaled and shifted."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + np.float32(self.epsilon)) * self.weight + self.bias, np.float32)

    def arrays(self) -> Arrays:
        """Return its tensors by name."""
        return {f"{self.name}.weight": self.weight, f"{self.name}.bias": self.bias}

    def describe(self) -> dict[str, Any]:
        """Return its metadata as JSON types."""
        return {"name": self.name, "epsilon": self.epsilon}

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "Norm":
        """Rebuild it from the results of `describe` and `arrays`.

        Raises:
            KeyError: If something is missing.
        """
        name = description["name"]
        return cls(name, arrays[f"{name}.weight"], arrays[f"{name}.bias"], float(description["epsilon"]))


@dataclass(frozen=True, eq=False)
class IntegerBlock:
    """Attention and two Linears, each with a LayerNorm before it and a residual sum after it.

    Args:
        attention_norm: LayerNorm before attention.
        qkv: Product for queries, keys and values of all heads, in this order.
        out: Product on the output of the heads.
        inner_norm: LayerNorm before the two Linears.
        inner: The first Linear, followed by a ReLU.
        outer: The second Linear.
    """

    attention_norm: Norm
    qkv: IntegerLinear
    out: IntegerLinear
    inner_norm: Norm
    inner: IntegerLinear
    outer: IntegerLinear

    def norms(self) -> tuple[Norm, Norm]:
        """Return both LayerNorms."""
        return self.attention_norm, self.inner_norm

    def linears(self) -> tuple[IntegerLinear, ...]:
        """Return the products in the order of execution."""
        return self.qkv, self.out, self.inner, self.outer

    def describe(self) -> dict[str, Any]:
        """Return the block's metadata as JSON types."""
        return {
            "norms": [norm.describe() for norm in self.norms()],
            "linears": [linear.describe() for linear in self.linears()],
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerBlock":
        """Rebuild it from the result of `describe`.

        Raises:
            KeyError: If something is missing.
        """
        attention_norm, inner_norm = (Norm.from_arrays(entry, arrays) for entry in description["norms"])
        qkv, out, inner, outer = (IntegerLinear.from_arrays(entry, arrays) for entry in description["linears"])
        return cls(attention_norm, qkv, out, inner_norm, inner, outer)


def frozen_block(name: str, block: nn.Module) -> IntegerBlock:
    """Freeze a block of a network at the present bits; see `frozen_linear`."""

    def product(path: str) -> IntegerLinear:
        return frozen_product(f"{name}.{path}", block.get_submodule(path))

    attention_norm, inner_norm = (
        frozen_norm(f"{name}.{path}", block.get_submodule(path)) for path in ("attention_norm", "inner_norm")
    )
    qkv, out, inner, outer = map(product, ("attention.qkv", "attention.out", "inner", "outer"))
    return IntegerBlock(attention_norm, qkv, out, inner_norm, inner, outer)


def frozen_norm(name: str, norm: object) -> Norm:
    """Return the frozen form of a LayerNorm."""
    assert isinstance(norm, nn.LayerNorm)
    weight, bias = (part.detach().cpu().float().numpy().copy() for part in (norm.weight, norm.bias))
    return Norm(name, weight, bias, norm.eps)
