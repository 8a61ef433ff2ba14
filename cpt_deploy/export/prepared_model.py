"""The public `export_bundle`: the bundle of a model that was prepared and trained in Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cpt_deploy.bundle import Bundle, Processor, TensorProcessor
from cpt_deploy.errors import UsageError
from cpt_deploy.export import bundle_export
from cpt_deploy.export.bundle_export import ModelIdentity
from cpt_deploy.integer.executor import Inputs
from cpt_deploy.quantization import QuantizedModel, WeightBits
from cpt_deploy.signature import Signature

_GOLDEN_ROWS = 4


class NamedTask(Protocol):
    """A task with a name, as `cpt_deploy.tasks.Task` is."""

    @property
    def name(self) -> str:
        """Its name, a pipeline tag of the Hugging Face Hub if there is one."""


def export_bundle(  # noqa: PLR0913  identity and bits
    model: QuantizedModel,
    destination: Path | str,
    golden_inputs: Inputs | None = None,
    *,
    task: str | NamedTask,
    processor: Processor | None = None,
    name: str | None = None,
    facts: Mapping[str, Any] | None = None,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    opset: int | None = None,
    formats: Sequence[str] = (),
) -> Bundle:
    """Freeze a model to integers and write it as a bundle, the directory that `cpt serve` serves.

    Args:
        model: A trained model, calibrated at the bits to be exported.
        destination: Directory of the bundle; an existing bundle there is replaced atomically.
        golden_inputs: A few inputs (N, ...) by name, or the only one, whose outputs every runtime has to reproduce;
            typical ones find more errors. None draws them from the normal distribution.
        task: The task of the model or its name, such as "tabular-regression".
        processor: Converts requests to inputs and outputs to answers; None takes and returns the tensors as they are.
        name: Name of the model in the server; None is that of the directory.
        facts: Facts for config.json and the model card, as JSON types.
        weight_bits: Bits of the scheduled weights, or by layer; None is the model's max_bits.
        activation_bits: Bits of the scheduled activations; None is the model's max_bits.
        opset: ONNX opset, 13 to 25; None is the lowest with the smallest types for the weights.
        formats: Further formats of the model, keys of `cpt_deploy.bundle.FORMATS`.

    Returns:
        The bundle, opened and verified.

    Raises:
        UsageError: If bits or opset are out of range, or inputs of integers are not given.
        ConversionError: If the model has seen no data, or an operation has no integer form.
        BundleError: If the processor does not fit the model and the task, or the bundle cannot be written.
    """
    path = Path(destination)
    identity = ModelIdentity(
        name=name or path.resolve().name,
        architecture=name or path.resolve().name,
        task=task if isinstance(task, str) else task.name,
        processor=TensorProcessor() if processor is None else processor,
        facts=facts or {},
    )
    return bundle_export.export_bundle(
        model,
        path,
        identity,
        _drawn_inputs(model.signature) if golden_inputs is None else golden_inputs,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        opset=opset,
        formats=formats,
    )


def _drawn_inputs(signature: Signature) -> dict[str, Tensor]:
    """Return normally distributed inputs by name, without states.

    Raises:
        UsageError: If an input has integers, whose range is unknown.
    """
    states = {before for before, _ in signature.states}
    generator, drawn = torch.Generator().manual_seed(0), {}
    for tensor, shape in zip(signature.inputs, signature.input_shapes(), strict=True):
        if tensor.name in states:
            continue
        if tensor.dtype != "float32":
            raise UsageError(
                f"Expected golden_inputs for the input {tensor.name} of {tensor.dtype}, but got none",
                hint=f'export_bundle(model, "bundle/", {{"{tensor.name}": values, ...}}, task=...)',
            )
        drawn[tensor.name] = torch.randn(_GOLDEN_ROWS, *shape, generator=generator)
    return drawn
