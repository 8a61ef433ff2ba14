"""Render the model card of a bundle: README.md with the front matter that the Hugging Face Hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cpt_deploy.bundle.processors.processor import CardText
from cpt_deploy.signature import BATCH, Signature, TensorSpec

_FILES = """\
`model.onnx` runs in any ONNX runtime. `quantization.json` has the quantization parameters of each tensor, and
`golden.safetensors` has inputs with the outputs that a runtime has to reproduce."""

_PORTABLE = """\
onnxruntime does so on every processor, in its fastest kernels and with any session options.
"""

_NATIVE = """\
On x86 processors without VNNI onnxruntime needs the session option `session.x64quantprecision` = `1` for
that, since the model was exported with `--native`.
"""

_SYMMETRIC = """\
On x86 processors onnxruntime needs the session option `session.qdqisint8allowed` = `1` for that, and
is slow with signed activations, which are meant for TensorRT and similar runtimes.
"""


_METHODS = {False: "cyclic-precision-training", True: "post-training-quantization"}


@dataclass(frozen=True)
class EvaluationResult:
    """One measured figure of a model.

    Args:
        value: The figure; for accuracies a share, 0..1.
        runtime: The measured model, e.g. "onnxruntime" or "trained model".
        dataset: Name of the data set.
        split: Split of the data set.
        metric: Name of the metric, as the Hub spells it.
        samples: Number of samples it was measured on, if known.
        interval: Bounds of its 95 % confidence interval, if known.
    """

    value: float
    runtime: str
    dataset: str
    split: str = "test"
    metric: str = "accuracy"
    samples: int | None = None
    interval: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """The metric and the measured model."""
        return f"{self.metric.capitalize()} ({self.runtime})"

    @property
    def text(self) -> str:
        """The value with its interval, as text for people."""
        if self.interval is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} (95 % interval {self.interval[0]:.4f} to {self.interval[1]:.4f})"


@dataclass(frozen=True)
class CardFields:
    """The author's part of a model card, in addition to the bundle's facts.

    Args:
        description: A paragraph on the purpose of the model.
        dataset: The data set it was trained on.
        license: Licence identifier of the weights, as the Hub spells it.
        tags: Further tags.
        calibrated: Whether the integers come from a float model by calibration only, not from training.
        float_parts: Whether operators between the layers are computed in float.
    """

    description: str | None = None
    dataset: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    calibrated: bool = False
    float_parts: bool = False


def render_card(
    name: str,
    task: str,
    fields: CardFields,
    *,
    facts: Mapping[str, object],
    signature: Signature,
    text: CardText,
    results: Sequence[EvaluationResult],
) -> str:
    """Return the model card as Markdown.

    Args:
        name: Name of the model.
        task: Its task, as the Hub spells it.
        fields: The author's part of the card.
        facts: Short facts in the order of the table, e.g. bits.
        signature: The model's inputs, outputs and states.
        text: The processor's part of the card.
        results: Measured figures; they become the model index.
    """
    states = {name for pair in signature.states for name in pair}
    tensors = [("input", tensor) for tensor in signature.inputs if tensor.name not in states]
    tensors += [("state", tensor) for tensor in signature.inputs if tensor.name in states]
    tensors += [("output", tensor) for tensor in signature.outputs if tensor.name not in states]
    rows = {**text.rows, **{key.replace("_", " "): value for key, value in facts.items()}}
    parts = [
        f"---\n{_front_matter(name, task, fields, results)}---\n\n# {name}\n",
        fields.description or f"{text.kind}, {_origin(fields)}",
        "",
        "| | |\n|---|---|",
        *(f"| {kind} | {_described(tensor)} |" for kind, tensor in tensors),
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()),
        "",
        *_results_section(results),
        "## Use\n",
        "```sh",
        *text.use,
        "sha256sum --check SHA256SUMS",
        "```\n",
        " ".join(part for part in (text.about, _FILES, _session_options(facts)) if part),
    ]
    return "\n".join(parts)


def _described(tensor: TensorSpec) -> str:
    return f"`{tensor.name}`, {tensor.dtype} ({', '.join(map(str, (BATCH, *tensor.shape)))})"


def _session_options(facts: Mapping[str, object]) -> str:
    """Return the paragraph on the session options with which onnxruntime reproduces the integers."""
    if facts.get("activations") == "symmetric":
        return _SYMMETRIC
    return _PORTABLE if facts.get("portable") else _NATIVE


def _origin(fields: CardFields) -> str:
    """Return how a model was trained and quantized, as the end of a sentence."""
    kind = "a network whose layers run on integers" if fields.float_parts else "an integer network"
    rest = " The operations in float between the layers are listed below." if fields.float_parts else ""
    if fields.calibrated:
        return (
            f"trained in float and exported as {kind} by cpt-deploy: the ranges of its activations were "
            f"calibrated on data, without quantized training.{rest}"
        )
    return (
        f"trained with Cyclic Precision Training and exported as {kind} by cpt-deploy: the served integers "
        f"are the trained integers.{rest}"
    )


def _front_matter(name: str, task: str, fields: CardFields, results: Sequence[EvaluationResult]) -> str:
    """Return the YAML at the top of a model card."""
    front: dict[str, Any] = {}
    if fields.license:
        front["license"] = fields.license
    front |= {
        "library_name": "onnx",
        "pipeline_tag": task,
        "tags": ["onnx", "onnxruntime", "quantized", "int8", _METHODS[fields.calibrated], *fields.tags],
    }
    if fields.dataset:
        front["datasets"] = [fields.dataset]
    if results:
        front["metrics"] = sorted({result.metric for result in results})
        front["model-index"] = [{"name": name, "results": [_index_entry(result, task) for result in results]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _index_entry(result: EvaluationResult, task: str) -> dict[str, Any]:
    return {
        "task": {"type": task, "name": task.replace("-", " ").capitalize()},
        "dataset": {"type": result.dataset, "name": result.dataset, "split": result.split},
        "metrics": [{"type": result.metric, "value": float(result.value), "name": result.title}],
    }


def _results_section(results: Sequence[EvaluationResult]) -> list[str]:
    """Return the lines of the table of measured figures; an empty list if there are none."""
    if not results:
        return []
    rows = [
        f"| {_cell(result.title)} | {_cell(result.dataset)}, {_cell(result.split)}"
        f"{f', {result.samples} samples' if result.samples else ''} | {result.text} |"
        for result in results
    ]
    return ["## Results\n", "| measured | on | value |\n|---|---|---|", *rows, ""]


def _cell(value: object) -> str:
    """Return a value as text that is safe inside a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
