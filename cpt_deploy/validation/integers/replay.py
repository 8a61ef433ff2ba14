"""Replay from the boundary: compare integers of networks with float parts, starting from onnxruntime's own integers.

Floats between integer parts agree only up to their last digits, which can change an integer by one. So each integer
part is judged by itself, given onnxruntime's integers at its boundary; differences of the free-running executor are
only reported.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME
from cpt_deploy.validation.comparison import Codes, IntegerComparison, LogitAgreement, Logits
from cpt_deploy.validation.integers.integer_model import Replay
from cpt_deploy.validation.integers.intermediate_outputs import ObservableModel

LAST_PLACES = 1e-4
"""Max difference of a logit, as a share of the max logit, if all boundaries are replayed: the operations after the last
boundary are float, whose last digits may differ."""
A_CODE = 1e-2
"""Likewise if a boundary is no intermediate output: an integer may differ by one there."""


class ReplayedIntegers:
    """Compares a model with intermediate outputs and the executor replayed from its boundaries.

    Args:
        observable: The model with its quantized tensors and the real results of its layers as outputs.
        replay: The integer model.
        provider: The execution provider of onnxruntime.
    """

    def __init__(self, observable: ObservableModel, replay: Replay, provider: str) -> None:
        self.session = OnnxRuntimeModel(observable.model, threads=None, provider=provider)
        self.observable, self.replay = observable, replay
        self.comparison: IntegerComparison | None = None
        self.free_running: IntegerComparison | None = None
        self.unmatched: list[str] = []
        self.same_logits = True
        seen = set(replay.entries) <= {intermediate.name for intermediate in observable.intermediates}
        self.logits = LogitAgreement(LAST_PLACES if seen else A_CODE)

    def add(self, inputs: npt.NDArray[np.float32], own: Mapping[str, Codes], served: Logits) -> None:
        """Add a batch.

        Args:
            inputs: Normalised images, float32 (N, C, H, W).
            own: The integers that the free-running executor computed from them.
            served: onnxruntime's logits, float32 (N, K).
        """
        got = self.session.trace({INPUT_NAME: inputs})
        entries = set(self.replay.entries) & set(got)
        logits, expected = self.replay.follow(inputs, {name: got[name] for name in entries})
        self.logits.add(logits, served)
        if self.comparison is None or self.free_running is None:
            intermediates = self.observable.intermediates
            self.comparison = IntegerComparison(
                [intermediate for intermediate in intermediates if intermediate.name in expected], self.replay.products
            )
            self.free_running = IntegerComparison(
                [intermediate for intermediate in intermediates if intermediate.name in own]
            )
            compared = {intermediate.name for intermediate in self.comparison.intermediates} | entries
            listed = [intermediate.name for intermediate in (*intermediates, *self.observable.hidden)]
            self.unmatched = [name for name in dict.fromkeys([*listed, *expected, *own]) if name not in compared]
        self.comparison.add(expected, got)
        self.free_running.add(own, got)
        self.same_logits &= np.array_equal(got[OUTPUT_NAME], served, equal_nan=True)

    def notes(self) -> tuple[str, ...]:
        """Return notes on tensors that could not be compared, as sentences."""
        hidden = [intermediate.name for intermediate in self.observable.hidden]
        others = [name for name in self.unmatched if name not in hidden]
        return inside_notes(hidden, others, same_logits=self.same_logits)


def inside_notes(hidden: Sequence[str], unmatched: Sequence[str], *, same_logits: bool) -> tuple[str, ...]:
    """Return notes on tensors inside of a model that could not be compared, as sentences.

    Args:
        hidden: Tensors that could not become intermediate outputs.
        unmatched: Tensors that were not compared for another reason.
        same_logits: Whether the logits are the same with intermediate outputs.
    """
    notes = []
    if hidden:
        notes.append(f"{_list(hidden)} could not be compared: as outputs they would change the optimized graph")
    if unmatched:
        notes.append(f"{_list(unmatched)} exist only in one of integer model and ONNX graph")
    if not same_logits:
        notes.append("onnxruntime's logits changed when intermediate outputs were added")
    return tuple(notes)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} quantized tensor{'s' if len(names) > 1 else ''} ({shown})"
