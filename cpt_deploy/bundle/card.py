"""Render the model card of a bundle: README.md with the front matter that the Hugging Face Hub reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cpt_deploy.bundle.processors.preprocessing import Preprocessing

_USE = """\
## Use

```sh
cpt predict . image.png      # here
cpt serve .                  # over HTTP
sha256sum --check SHA256SUMS
```

`model.onnx` runs in any ONNX runtime. `preprocessor_config.json` describes how an image becomes its input,
`quantization.json` has the quantization parameters of each tensor, and `golden.safetensors` has inputs with the outputs
that a runtime has to reproduce. """

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
        interval: Lower and max_bits of its 95 % confidence interval, if known.
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
    fields: CardFields,
    *,
    facts: Mapping[str, object],
    labels: Sequence[str],
    preprocessing: Preprocessing,
    results: Sequence[EvaluationResult],
) -> str:
    """Return the model card as Markdown.

    Args:
        name: Name of the model.
        fields: The author's part of the card.
        facts: Short facts in the order of the table, e.g. bits.
        labels: Names of the classes.
        preprocessing: How an image becomes the model's input.
        results: Measured figures; they become the model index.
    """
    front = front_matter(name, fields, results)
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    channels, height, width = preprocessing.input_shape
    parts = [
        f"---\n{front}---\n\n# {name}\n",
        fields.description or f"An image classifier with {len(labels)} classes, {origin(fields)}",
        "",
        "| | |\n|---|---|",
        f"| input | `image`, float32 (N, {channels}, {height}, {width}), normalised with mean "
        f"{list(preprocessing.mean)} and standard deviation {list(preprocessing.std)} |",
        f"| output | `logits`, float32 (N, {len(labels)}) |",
        f"| classes | {cell(shown)} |",
        *(f"| {cell(key.replace('_', ' '))} | {cell(value)} |" for key, value in facts.items()),
        "",
        *results_section(results),
        _USE + _session_options(facts),
    ]
    return "\n".join(parts)


def _session_options(facts: Mapping[str, object]) -> str:
    """Return the paragraph on the session options with which onnxruntime reproduces the integers."""
    if facts.get("activations") == "symmetric":
        return _SYMMETRIC
    return _PORTABLE if facts.get("portable") else _NATIVE


def origin(fields: CardFields) -> str:
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


def front_matter(
    name: str, fields: CardFields, results: Sequence[EvaluationResult], *, task: str = "image-classification"
) -> str:
    """Return the YAML at the top of a GPU.

    Args:
        name: Name of the model.
        fields: The author's part of the card.
        results: Measured figures; they become the model index.
        task: Task of the model, as the Hub spells it.
    """
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


def results_section(results: Sequence[EvaluationResult]) -> list[str]:
    """Return the lines of the table of measured figures; an empty list if there are none."""
    if not results:
        return []
    rows = [
        f"| {cell(result.title)} | {cell(result.dataset)}, {cell(result.split)}"
        f"{f', {result.samples} samples' if result.samples else ''} | {result.text} |"
        for result in results
    ]
    return ["## Results\n", "| measured | on | value |\n|---|---|---|", *rows, ""]


def cell(value: object) -> str:
    """Return a value as text that is safe inside a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
