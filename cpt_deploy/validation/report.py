"""The evidence that `validate` returns: samples, software, results and verdict."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from cpt_deploy.bundle import FORMATS, EvaluationResult
from cpt_deploy.bundle.golden import GoldenCheck
from cpt_deploy.bundle.runtime.cpu import CpuInfo
from cpt_deploy.bundle.runtime.providers import CPU
from cpt_deploy.integer.accumulators import Accumulator, LayerSaturation
from cpt_deploy.metric import Metric
from cpt_deploy.validation.accuracy.agreement import DetectionFacts, OutputAgreementFacts
from cpt_deploy.validation.accuracy.details import Confusion, OutputPairs
from cpt_deploy.validation.accuracy.noninferiority import NonInferiority
from cpt_deploy.validation.accuracy.runtimes import PairResult, RuntimeResult
from cpt_deploy.validation.facts import DatasetFacts, FloatFacts, Gate, GraphFacts, RecordedFacts
from cpt_deploy.validation.integers.comparison import ServedOutputs, TensorResult, TrainedCodes
from cpt_deploy.validation.integers.saturation import Portability, saturation_entry
from cpt_deploy.validation.onnx.constants import ConstantsResult


@dataclass(frozen=True)
class ValidationReport:
    """The evidence for one bundle.

    Args:
        bundle: Name of the model.
        task: Its task.
        metric: The metric of the task.
        drop_unit: Unit of drops: points, or %.
        model_sha256: Digest of its model.onnx.
        content_sha256: Digest of all its files that can change an answer.
        dataset: The samples.
        gate: The requirements.
        reasons: Why it failed; empty if it did not.
        undecided: Questions that these samples cannot decide; empty if there are none.
        runtimes: The metric in each runtime.
        comparisons: Comparisons of pairs of runtimes on the same samples.
        tensors: Integers of the executor against onnxruntime's, in graph order; `None` if they were not compared.
        golden: Reproduction of the golden sample.
        graph: The optimized graph; `None` without the `onnx` package.
        saturation: Each layer's bound against 16-bit saturation.
        cpu: The processor.
        versions: Versions of the software.
        validated_at: Time of the validation, ISO 8601 in UTC.
        notes: What was not measured, and why.
        portability: The reductions if the bundle was exported as portable.
        accumulators: The bound of each layer's sums against int32.
        unoptimized_tensors: Integers of the executor against onnxruntime's with its optimizations off, for
            comparison: the results of the same file in a runtime that does not execute integers.
        constants: Constants of model.onnx against the integer graph; `None` without the `onnx` package.
        confusion: Confusion matrix of onnxruntime; `None` if the task has no classes.
        output_pairs: Some output values of the trained model and of onnxruntime; `None` without a trained model.
        reference: Title of the runtime "trained": the trained model, or the float model of a calibrated bundle.
        provider: onnxruntime's name of the execution provider.
        float_parts: The parts that compute in float; `None` if the network is integer from end to end. With them,
            `tensors` are compared by replay from onnxruntime's integers at the boundaries of the integer parts.
        contradictions: Contradictions of the bundle with the run, or between its own files.
        recorded: The metric of the trained model measured in training; `None` if that used other samples.
        non_inferiority: Whether the loss of onnxruntime is within the allowed one; `None` without a trained model.
        served_outputs: The executor's outputs against those of the serving session.
        session_outputs: The outputs of the session whose integers were compared against those of the serving session.
        trained_codes: Differences of the trained model's outputs from the executor's, in quantization steps.
        agreement: Agreement of each served output with the float model's, of a model whose task is not known.
        detection: Agreement of its boxes, if it is a detector.
    """

    bundle: str
    task: str
    metric: Metric
    drop_unit: str
    model_sha256: str
    content_sha256: str
    dataset: DatasetFacts
    gate: Gate
    reasons: tuple[str, ...]
    runtimes: tuple[RuntimeResult, ...]
    comparisons: tuple[PairResult, ...]
    tensors: tuple[TensorResult, ...] | None
    golden: GoldenCheck
    graph: GraphFacts | None
    saturation: tuple[LayerSaturation, ...]
    cpu: CpuInfo
    versions: dict[str, str]
    validated_at: str
    notes: tuple[str, ...]
    portability: Portability | None = None
    accumulators: tuple[Accumulator, ...] = ()
    unoptimized_tensors: tuple[TensorResult, ...] | None = None
    constants: ConstantsResult | None = None
    confusion: Confusion | None = None
    output_pairs: OutputPairs | None = None
    reference: str = "trained model"
    provider: str = CPU
    float_parts: FloatFacts | None = None
    undecided: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()
    recorded: RecordedFacts | None = None
    non_inferiority: NonInferiority | None = None
    served_outputs: ServedOutputs | None = None
    session_outputs: ServedOutputs | None = None
    trained_codes: TrainedCodes | None = None
    agreement: tuple[OutputAgreementFacts, ...] = ()
    detection: DetectionFacts | None = None

    @property
    def verdict(self) -> str:
        """The verdict: "failed", "undecided" or "passed"."""
        return "failed" if self.reasons else "undecided" if self.undecided else "passed"

    @property
    def passed(self) -> bool:
        """Whether the bundle may be served: it passed, or is undecided and that is allowed."""
        return self.verdict == "passed" or (self.verdict == "undecided" and self.gate.allow_undecided)

    @property
    def drop(self) -> float | None:
        """Drop from the trained model to onnxruntime in `drop_unit` (negative: a gain); `None` without pairs."""
        return None if self.non_inferiority is None else self.non_inferiority.loss

    @property
    def compared_integers(self) -> int:
        """Number of compared integers."""
        return sum(tensor.values for tensor in self.tensors or ())

    @property
    def mismatching_integers(self) -> int:
        """Number of differing integers."""
        return sum(tensor.mismatches for tensor in self.tensors or ())

    @property
    def first_difference(self) -> TensorResult | None:
        """The first tensor in graph order with a differing integer."""
        return next((tensor for tensor in self.tensors or () if tensor.mismatches), None)

    def title(self, name: str) -> str:
        """Return the title of a runtime for reports."""
        return self.reference if name == "trained" else _TITLES[name]

    def runtime(self, name: str) -> RuntimeResult:
        """Return the result of a runtime.

        Raises:
            KeyError: If it did not run.
        """
        return {runtime.name: runtime for runtime in self.runtimes}[name]

    def _runtime_entry(self, runtime: RuntimeResult) -> dict[str, Any]:
        interval = None if runtime.interval is None else list(runtime.interval)
        value = {self.metric.name: runtime.value, "interval_95": interval}
        return {"name": runtime.name, **value, "finite": runtime.finite}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types, the content of validation.json."""
        fields = asdict(self)
        fields["passed"], fields["verdict"] = self.passed, self.verdict
        fields["drop"] = self.drop
        fields["metric"] = self.metric.to_dict()
        fields["runtimes"] = [self._runtime_entry(runtime) for runtime in self.runtimes]
        fields["comparisons"] = [{**pair, **pair.pop("figures")} for pair in fields["comparisons"]]
        fields["integers"] = None
        if self.tensors is not None:
            first = self.first_difference
            fields["integers"] = {
                "compared": self.compared_integers,
                "mismatching": self.mismatching_integers,
                "first_difference": None if first is None else first.name,
            }
        if self.float_parts is not None:
            fields["float_parts"]["integer_share_of_macs"] = round(self.float_parts.integer_share, 6)
        fields["saturation"] = saturation_entry(self.saturation, self.cpu)
        plain: dict[str, Any] = _json_types(fields)
        return plain

    def evaluation_results(self) -> list[EvaluationResult]:
        """Return the metric in each runtime for the model card, the served one first."""
        served_first = sorted(self.runtimes, key=lambda runtime: runtime.name != "onnxruntime")
        return [
            EvaluationResult(
                value=runtime.value,
                runtime=self.title(runtime.name),
                dataset=self.dataset.name,
                split=self.dataset.split,
                metric=self.metric.name,
                samples=self.dataset.samples,
                interval=runtime.interval,
            )
            for runtime in served_first
            if runtime.name != _UNOPTIMIZED
        ] + [
            EvaluationResult(
                value=value,
                runtime="onnxruntime",
                dataset=self.dataset.name,
                split=self.dataset.split,
                metric=metric,
                samples=self.dataset.samples,
            )
            for metric, value in self._agreed()
        ]

    def _agreed(self) -> list[tuple[str, float]]:
        """Return the agreement with a float model as metrics."""
        found = [(f"overlap of {each.name}", each.overlap) for each in self.agreement if each.overlap is not None]
        found += [(f"same top class of {each.name}", each.top1) for each in self.agreement if each.top1 is not None]
        if self.detection is not None:
            found.append(("mean average precision against the float model", self.detection.mean_average_precision))
        return found


_UNOPTIMIZED = "onnxruntime-unoptimized"
_TITLES = {
    "onnxruntime": "onnxruntime",
    "executor": "integer executor",
    _UNOPTIMIZED: "onnxruntime, not optimized",
    **{name: known.title for name, known in FORMATS.items() if not known.always},
}


def _json_types(value: Any) -> Any:
    """Return JSON types, with `None` in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _json_types(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_json_types(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
