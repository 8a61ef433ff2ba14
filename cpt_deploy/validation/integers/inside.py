"""Compare every integer of a model in onnxruntime with the integer executor's, batch by batch.

A network that is integer from end to end has to have the executor's integers everywhere. Between float parts, floats
agree only up to their last digits, which can change an integer by one. So there each integer part is judged by itself,
replayed from onnxruntime's own integers at its boundary, and so is each float part: an operator that means something
else in ONNX moves integers by far more than one. Differences of the free-running executor are only reported.
"""

from collections.abc import Sequence

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.signature import Signature
from cpt_deploy.validation.accuracy.samples import Arrays
from cpt_deploy.validation.integers.comparison import IntegerComparison, OutputAgreement
from cpt_deploy.validation.integers.integer_model import ExecutedGraph, Execution
from cpt_deploy.validation.integers.intermediate_outputs import ObservableModel

LAST_PLACES = 1e-4
"""Max difference of an output, as a share of its largest value, if all boundaries are replayed: the operations after
the last boundary are float, whose last digits may differ."""
A_CODE = 1e-2
"""Likewise if a boundary is no intermediate output: an integer may differ by one there."""
A_FEW_CODES = 2
"""Max difference of an integer that the last digits of the float operations before it explain, as in the trial of
`prepare`. Comparisons in float, as of a sort, can move single integers further."""


class InsideComparison:
    """Compares a model with intermediate outputs with the executor.

    Args:
        observable: The model with its quantized tensors, and with a replay the real results of its layers, as outputs.
        signature: Its signature without the intermediate outputs.
        provider: The execution provider of onnxruntime.
        replay: The integer model, if it is to be replayed from the boundaries of its integer parts.

    Attributes:
        comparison: The integers that have to be equal.
        unoptimized: The same with onnxruntime's optimizations off; `None` with a replay.
        free_running: The integers of the free-running executor; `None` without a replay.
        boundaries: The integers at the boundaries, computed from those before them by the executor's float operations,
            which count as differing beyond `A_FEW_CODES`; `None` without a replay.
        outputs: The replayed executor's outputs against the served ones; `None` without a replay.
        session_outputs: The outputs of the session with intermediate outputs against the served ones.
    """

    def __init__(
        self, observable: ObservableModel, signature: Signature, provider: str, replay: ExecutedGraph | None = None
    ) -> None:
        self.observable, self.replay = observable, replay
        self.session = OnnxRuntimeModel(observable.model, signature, threads=None, provider=provider)
        self.unoptimized_session = (
            OnnxRuntimeModel(observable.model, signature, threads=None, optimize=False, provider=provider)
            if replay is None
            else None
        )
        self.comparison: IntegerComparison | None = None
        self.unoptimized: IntegerComparison | None = None
        self.free_running: IntegerComparison | None = None
        self.boundaries: IntegerComparison | None = None
        self.session_outputs = OutputAgreement(LAST_PLACES)
        self.outputs: OutputAgreement | None = None
        if replay is not None:
            seen = set(replay.entries) <= {intermediate.name for intermediate in observable.intermediates}
            self.outputs = OutputAgreement(LAST_PLACES if seen else A_CODE)
        self._unmatched: list[str] = []

    def add(self, inputs: Arrays, own: Execution, served: Arrays) -> None:
        """Add a batch.

        Args:
            inputs: Inputs by name, with the states of the served model.
            own: The result of the free-running executor.
            served: The outputs of the serving session by name, without states.
        """
        got = self.session.trace(inputs)
        self.session_outputs.add({name: got[name] for name in served}, served)
        if self.replay is None:
            expected, known = own.integers, {*own.integers}
        else:
            entries = {name: got[name] for name in self.replay.entries if name in got}
            replayed = self.replay.follow(inputs, entries)
            assert self.outputs is not None
            self.outputs.add({name: replayed.outputs[name] for name in served}, served)
            expected, known = replayed.integers, {*replayed.integers, *entries}
            if self.boundaries is None:
                at = [each for each in self.observable.intermediates if each.name in replayed.entries]
                self.boundaries = IntegerComparison(at, tolerance=A_FEW_CODES)
            self.boundaries.add(replayed.entries, got)
        if self.comparison is None:
            self._begin(expected, own.integers, known)
        assert self.comparison is not None
        self.comparison.add(expected, got)
        if self.unoptimized is not None and self.unoptimized_session is not None:
            self.unoptimized.add(expected, self.unoptimized_session.trace(inputs))
        if self.free_running is not None:
            self.free_running.add(own.integers, got)

    def _begin(self, expected: Arrays, own: Arrays, known: set[str]) -> None:
        intermediates = self.observable.intermediates
        units = {} if self.replay is None else self.replay.products
        judged = [intermediate for intermediate in intermediates if intermediate.name in expected]
        self.comparison = IntegerComparison(judged, units)
        if self.replay is None:
            self.unoptimized = IntegerComparison(judged)
        else:
            self.free_running = IntegerComparison([each for each in intermediates if each.name in own])
        compared = {intermediate.name for intermediate in judged} | known.difference(expected)
        listed = [intermediate.name for intermediate in (*intermediates, *self.observable.hidden)]
        self._unmatched = [name for name in dict.fromkeys([*listed, *expected, *own]) if name not in compared]

    def notes(self) -> tuple[str, ...]:
        """Return notes on tensors that could not be compared, as sentences."""
        hidden = [intermediate.name for intermediate in self.observable.hidden]
        others = [name for name in self._unmatched if name not in hidden]
        notes = []
        if hidden:
            notes.append(f"{_list(hidden)} could not be compared: as outputs they would change the optimized graph")
        if others:
            notes.append(f"{_list(others)} exist only in one of integer model and ONNX graph")
        if self.session_outputs.unequal:
            notes.append("onnxruntime's outputs changed when intermediate outputs were added")
        return tuple(notes)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} quantized tensor{'s' if len(names) > 1 else ''} ({shown})"
