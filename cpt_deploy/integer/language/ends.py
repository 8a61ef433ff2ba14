"""The embedding and the head of an integer Transformer: from tokens to rows, and from features to scores.

With adaptive input and softmax each token is looked up in all bands and the row from its own band is selected, so that
the graph is the same for all tokens; a band's products are small.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import ConversionError
from cpt_deploy.integer.language.parts import Floats, IntegerLinear, IntegerTable, Trace, frozen_product, frozen_table
from cpt_deploy.models.language.heads import AdaptiveEmbedding, AdaptiveHead, SoftmaxHead
from cpt_deploy.quantization.modules.layers import QuantizedEmbedding


@dataclass(frozen=True, eq=False)
class IntegerEmbedding:
    """Tables of rows, one per band of tokens: int64 (N, T) to float32 (N, T, F).

    Args:
        tables: One table, or those of the bands in the order of the tokens.
        projections: Product of each band from its dimensions to F; none if there is one table of F dimensions.
    """

    tables: tuple[IntegerTable, ...]
    projections: tuple[IntegerLinear, ...] = ()

    def __call__(self, tokens: npt.NDArray[np.int64], trace: Trace | None = None) -> Floats:
        """Return the rows of tokens."""
        if not self.projections:
            return self.tables[0](tokens)
        out: Floats | None = None
        start = 0
        for table, projection in zip(self.tables, self.projections, strict=True):
            size = len(table.codes)
            places = tokens - start
            rows = projection(table(np.clip(places, 0, size - 1)), trace)
            out = rows if out is None else np.where((places >= 0)[..., None], rows, out)
            start += size
        assert out is not None, "there is a band"
        return out

    def describe(self) -> dict[str, Any]:
        """Return its metadata as JSON types."""
        return {
            "tables": [table.name for table in self.tables],
            "projections": [projection.describe() for projection in self.projections],
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerEmbedding":
        """Rebuild it from the result of `describe`.

        Raises:
            KeyError: If something is missing.
        """
        return cls(
            tuple(IntegerTable.from_arrays(name, arrays) for name in description["tables"]),
            tuple(IntegerLinear.from_arrays(entry, arrays) for entry in description["projections"]),
        )


@dataclass(frozen=True, eq=False)
class IntegerHead:
    """Products from features, float32 (N, T, F), to the scores of all tokens, (N, T, V).

    Args:
        first: Product for the logits of all tokens; with bands for those of the first band's tokens and of the other
            bands.
        tails: Two products for each further band, from F to its dimensions, and from these to the logits of its tokens.
            With bands the scores are log-probabilities, otherwise logits.
    """

    first: tuple[IntegerLinear, ...]
    tails: tuple[tuple[IntegerLinear, IntegerLinear], ...] = ()

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.first[0].codes) + sum(len(wide.codes) for _, wide in self.tails)

    def linears(self) -> tuple[IntegerLinear, ...]:
        """Return the products in the order of execution."""
        return (*self.first, *(linear for tail in self.tails for linear in tail))

    def __call__(self, x: Floats, trace: Trace | None = None) -> Floats:
        """Return the scores."""
        if not self.tails:
            return self.first[0](x, trace)
        known = log_softmax(np.concatenate([linear(x, trace) for linear in self.first], axis=-1))
        tokens = known.shape[-1] - len(self.tails)
        parts = [known[..., :tokens]]
        for number, (narrow, wide) in enumerate(self.tails):
            inside = log_softmax(wide(narrow(x, trace), trace))
            parts.append(inside + known[..., tokens + number, None])
        return np.concatenate(parts, axis=-1)

    def describe(self) -> dict[str, Any]:
        """Return its metadata as JSON types."""
        return {
            "first": [linear.describe() for linear in self.first],
            "tails": [[linear.describe() for linear in tail] for tail in self.tails],
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "IntegerHead":
        """Rebuild it from the result of `describe`.

        Raises:
            KeyError: If something is missing.
        """
        tails = []
        for entries in description["tails"]:
            narrow, wide = (IntegerLinear.from_arrays(entry, arrays) for entry in entries)
            tails.append((narrow, wide))
        return cls(tuple(IntegerLinear.from_arrays(entry, arrays) for entry in description["first"]), tuple(tails))


def log_softmax(x: Floats) -> Floats:
    """Return log-probabilities along the last axis, float32."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32)


def frozen_embedding(module: object) -> IntegerEmbedding:
    """Freeze a network's `embedding`, plain or adaptive.

    Raises:
        ConversionError: If it is another module, or `frozen_linear` rejects a projection.
    """
    if isinstance(module, QuantizedEmbedding):
        return IntegerEmbedding((frozen_table("embedding", module),))
    if isinstance(module, AdaptiveEmbedding):
        tables = [frozen_table(f"embedding.bands.{number}", band) for number, band in enumerate(module.bands)]
        projections = [
            frozen_product(f"embedding.projections.{number}", entry) for number, entry in enumerate(module.projections)
        ]
        return IntegerEmbedding(tuple(tables), tuple(projections))
    raise ConversionError(f"Expected an Embedding or adaptive input, but got {type(module).__name__}")


def frozen_head(module: object) -> IntegerHead:
    """Freeze a network's `head`, plain or adaptive.

    Raises:
        ConversionError: If it is another module, or `frozen_linear` rejects a product.
    """
    if isinstance(module, SoftmaxHead):
        return IntegerHead((frozen_product("head.decoder", module.decoder),))
    if isinstance(module, AdaptiveHead):
        first = module.softmax.head
        names = ("tokens", "bands")
        tails = [
            tuple(frozen_product(f"head.softmax.tail.{number}.{place}", tail[place]) for place in (0, 1))  # type: ignore[index]
            for number, tail in enumerate(module.softmax.tail)
        ]
        return IntegerHead(
            tuple(frozen_product(f"head.softmax.head.{name}", first.get_submodule(name)) for name in names),
            tuple((narrow, wide) for narrow, wide in tails),
        )
    raise ConversionError(f"Expected a softmax or an adaptive softmax, but got {type(module).__name__}")
