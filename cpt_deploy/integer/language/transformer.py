"""The integer Transformer language model: every Linear and the embedding in integers, the rest in float32.

As in training, positions, LayerNorm, attention's two products and its softmax, ReLU and the sums are in float. The
state is the cache of keys and values, so a text in one call or in several gives the same numbers up to float rounding,
which can change a quantized value by one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.integer.language.blocks import IntegerBlock, Norm, frozen_block, frozen_norm
from cpt_deploy.integer.language.ends import IntegerEmbedding, IntegerHead, frozen_embedding, frozen_head
from cpt_deploy.integer.language.model import State
from cpt_deploy.integer.language.parts import (
    Arrays,
    Floats,
    IntegerLinear,
    IntegerTable,
    Trace,
    arrays_of,
)
from cpt_deploy.models.language.transformer import TransformerLanguageModel
from cpt_deploy.quantization.language import QuantizedLanguageModel
from cpt_deploy.quantization.state.scheduled_model import WeightBits

POSITIONS = "positions"


@dataclass(frozen=True, eq=False)
class IntegerTransformer:
    """The frozen model; its state is (k_0, v_0, k_1, …), float32 (N, heads, past, F / heads) each.

    Args:
        embedding: From tokens to rows.
        positions: Position embeddings, added to the rows, float32 (context, F).
        blocks: The blocks in order.
        norm: LayerNorm before the head.
        head: From features to scores.
        heads: Number of attention heads.
    """

    embedding: IntegerEmbedding
    positions: Floats
    blocks: tuple[IntegerBlock, ...]
    norm: Norm
    head: IntegerHead
    heads: int

    kind: ClassVar[str] = "transformer"

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.head.vocabulary

    @property
    def context(self) -> int:
        """Maximum number of past and present tokens together."""
        return len(self.positions)

    @property
    def features(self) -> int:
        """F."""
        return int(self.positions.shape[1])

    @property
    def row_factor(self) -> np.float32:
        """Factor of the embedding's rows."""
        return np.float32(math.sqrt(self.features))

    @property
    def query_factor(self) -> np.float32:
        """Factor of the queries before the product with the keys."""
        return np.float32(1 / math.sqrt(self.features // self.heads))

    def tables(self) -> tuple[IntegerTable, ...]:
        """Return the embedding's tables."""
        return self.embedding.tables

    def linears(self) -> tuple[IntegerLinear, ...]:
        """Return the products in the order of execution."""
        between = (linear for block in self.blocks for linear in block.linears())
        return (*self.embedding.projections, *between, *self.head.linears())

    def norms(self) -> tuple[Norm, ...]:
        """Return the LayerNorms in the order of execution."""
        return (*(norm for block in self.blocks for norm in block.norms()), self.norm)

    def initial_state(self, batch: int) -> State:
        """Return empty keys and values."""
        shape = (batch, self.heads, 0, self.features // self.heads)
        return (np.zeros(shape, np.float32),) * (2 * len(self.blocks))

    def run(
        self, tokens: npt.NDArray[np.int64], state: State | None = None, trace: Trace | None = None
    ) -> tuple[Floats, State]:
        """Return logits, or with bands log-probabilities, float32 (N, T, V), and the state after the last token.

        Args:
            tokens: int64 (N, T).
            state: The state before these tokens; an empty one by default.
            trace: Records the integers.

        Raises:
            UsageError: If the tokens and those before them are more than the context.
        """
        state = self.initial_state(len(tokens)) if state is None else state
        past = state[0].shape[2]
        total = past + tokens.shape[1]
        if total > self.context:
            raise UsageError(f"Expected at most {self.context} tokens, the model's context, but got {total}")
        x = self.embedding(tokens, trace) * self.row_factor + self.positions[past:total]
        mask = causal_mask(past, total)
        cache: list[Floats] = []
        for number, block in enumerate(self.blocks):
            y, keys, values = self._attend(block, x, state[2 * number : 2 * number + 2], mask, trace)
            x = x + y
            inner = np.maximum(block.inner(block.inner_norm(x), trace), np.float32(0))
            x = x + block.outer(inner, trace)
            cache += [keys, values]
        return self.head(self.norm(x), trace), tuple(cache)

    def _attend(
        self, block: IntegerBlock, x: Floats, cache: State, mask: Floats, trace: Trace | None
    ) -> tuple[Floats, Floats, Floats]:
        """Return attention's output, (N, T, F), and all keys and values."""
        batch, length, features = x.shape
        qkv = block.qkv(block.attention_norm(x), trace)
        parts = qkv.reshape(batch, length, 3, self.heads, features // self.heads).transpose(2, 0, 3, 1, 4)
        keys, values = (np.concatenate([before, now], axis=2) for before, now in zip(cache, parts[1:], strict=True))
        scores = np.matmul(parts[0] * self.query_factor, keys.swapaxes(2, 3)) + mask
        y = np.matmul(_softmax(scores), values)
        return block.out(y.transpose(0, 2, 1, 3).reshape(batch, length, features), trace), keys, values

    def arrays(self) -> Arrays:
        """Return its tensors by name."""
        norms = {name: array for norm in self.norms() for name, array in norm.arrays().items()}
        return arrays_of([*self.tables(), *self.linears()]) | norms | {POSITIONS: self.positions}

    def describe(self) -> dict[str, Any]:
        """Return the model's metadata as JSON types."""
        return {
            "type": self.kind,
            "embedding": self.embedding.describe(),
            "blocks": [block.describe() for block in self.blocks],
            "norm": self.norm.describe(),
            "head": self.head.describe(),
            "heads": self.heads,
        }

    @classmethod
    def from_arrays(cls, description: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Rebuild it from the results of `describe` and `arrays`.

        Raises:
            KeyError: If something is missing.
        """
        return cls(
            embedding=IntegerEmbedding.from_arrays(description["embedding"], arrays),
            positions=arrays[POSITIONS],
            blocks=tuple(IntegerBlock.from_arrays(entry, arrays) for entry in description["blocks"]),
            norm=Norm.from_arrays(description["norm"], arrays),
            head=IntegerHead.from_arrays(description["head"], arrays),
            heads=int(description["heads"]),
        )


def causal_mask(past: int, total: int) -> Floats:
    """Return the causal mask added to scores, float32 (total - past, total): −∞ for later tokens, otherwise 0."""
    hidden = np.arange(total) > np.arange(past, total)[:, None]
    return np.where(hidden, np.float32(-np.inf), np.float32(0))


def freeze_transformer(
    model: QuantizedLanguageModel, *, weight_bits: WeightBits = None, activation_bits: int | None = None
) -> IntegerTransformer:
    """Freeze a trained Transformer language model to integers.

    Args:
        model: The model, calibrated at the bits to be exported.
        weight_bits: Bits of the scheduled layers' weights, or of single layers by name; None is max_bits.
        activation_bits: Bits of the scheduled activations; None is max_bits.

    Raises:
        ConversionError: If it is another model, its bits are more than 8, or a layer's input was never observed.
        UsageError: If bits are out of range.
    """
    network = model.network
    if not isinstance(network, TransformerLanguageModel):
        raise ConversionError(f"Expected a Transformer language model, but got {type(network).__name__}")
    with model.at_max_bits(weight_bits, activation_bits):
        return IntegerTransformer(
            embedding=frozen_embedding(network.embedding),
            positions=network.get_buffer("positions").detach().cpu().float().numpy().copy(),
            blocks=tuple(frozen_block(f"blocks.{number}", block) for number, block in enumerate(network.blocks)),
            norm=frozen_norm("norm", network.norm),
            head=frozen_head(network.head),
            heads=network.heads,
        )


def _softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
