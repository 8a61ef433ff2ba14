"""Integers of a network with operations in float: computed a second time from the codes that onnxruntime had.

Floats between integers agree only up to their last places, which can move a code by one. So each stretch of integers is
judged by itself, given the codes at its entry; how many codes differ when the executor goes its own way is told.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.validation.comparison import Codes, IntegerComparison, LogitAgreement, Logits
from cpt_deploy.validation.integers.integer_model import Follower
from cpt_deploy.validation.integers.intermediate_outputs import TappedModel

LAST_PLACES = 1e-4
"""Most by which a logit may differ where the executor has the codes of every entry, as a share of the greatest: what
comes after the last entry is float, whose last places may differ."""
A_CODE = 1e-2
"""Likewise where an entry cannot be looked at: a code may differ by one there."""


class FollowedIntegers:
    """The tapped model and the executor that follows it.

    Args:
        tapped: The file with its quantized tensors and the results of its layers as outputs.
        follower: The integer model.
        provider: The execution provider of onnxruntime.
    """

    def __init__(self, tapped: TappedModel, follower: Follower, provider: str) -> None:
        self.session = OnnxRuntimeModel(tapped.model, threads=None, provider=provider)
        self.tapped, self.follower = tapped, follower
        self.comparison: IntegerComparison | None = None
        self.own_way: IntegerComparison | None = None
        self.unmatched: list[str] = []
        self.same_logits = True
        seen = set(follower.entries) <= {tap.name for tap in tapped.taps}
        self.logits = LogitAgreement(LAST_PLACES if seen else A_CODE)

    def add(self, inputs: npt.NDArray[np.float32], own: Mapping[str, Codes], served: Logits) -> None:
        """Add a batch.

        Args:
            inputs: Normalised images, float32 (N, C, H, W).
            own: The codes that the executor computed from them on its own.
            served: onnxruntime's logits, float32 (N, K).
        """
        got = self.session.trace(inputs)
        entries = set(self.follower.entries) & set(got)
        logits, expected = self.follower.follow(inputs, {name: got[name] for name in entries})
        self.logits.add(logits, served)
        if self.comparison is None or self.own_way is None:
            taps = self.tapped.taps
            self.comparison = IntegerComparison([tap for tap in taps if tap.name in expected], self.follower.products)
            self.own_way = IntegerComparison([tap for tap in taps if tap.name in own])
            compared = {tap.name for tap in self.comparison.taps} | entries
            listed = [tap.name for tap in (*taps, *self.tapped.hidden)]
            self.unmatched = [name for name in dict.fromkeys([*listed, *expected, *own]) if name not in compared]
        self.comparison.add(expected, got)
        self.own_way.add(own, got)
        self.same_logits &= np.array_equal(got["logits"], served, equal_nan=True)

    def notes(self) -> tuple[str, ...]:
        """Return what could not be compared, as sentences."""
        hidden = [tap.name for tap in self.tapped.hidden]
        others = [name for name in self.unmatched if name not in hidden]
        return inside_notes(hidden, others, same_logits=self.same_logits)


def inside_notes(hidden: Sequence[str], unmatched: Sequence[str], *, same_logits: bool) -> tuple[str, ...]:
    """Return what could not be compared inside of a model, as sentences.

    Args:
        hidden: Tensors that could not be looked at.
        unmatched: Tensors that were not compared for another reason.
        same_logits: Whether looking at the integers left the logits as they were.
    """
    notes = []
    if hidden:
        notes.append(f"{_list(hidden)} could not be looked at: as outputs they would change the optimized graph")
    if unmatched:
        notes.append(f"{_list(unmatched)} exist only in one of integer model and ONNX graph")
    if not same_logits:
        notes.append("onnxruntime's logits changed when its inner integers were looked at")
    return tuple(notes)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} quantized tensor{'s' if len(names) > 1 else ''} ({shown})"
