"""Calibrate a model: estimate BatchNorm statistics and activation ranges at the precision that will be served."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from cpt_deploy.errors import DataError
from cpt_deploy.quantization.calibration.bias_rounding import round_biases
from cpt_deploy.quantization.conversion.capture.training_behaviour import keeps_statistics
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.quantization.scheduled_model import WeightBits
from cpt_deploy.quantization.stateful import State, call_with_state, carries_state, plain_inputs
from cpt_deploy.signature import BATCH, TensorSpec

Batches = Iterable[Tensor | Sequence[Any] | Mapping[str, Any]]
"""Batches of training inputs, as a DataLoader yields them: inputs alone, (inputs, labels), or a dictionary with the
inputs. See `inputs_of`."""

Inputs = tuple[Tensor, ...]


def calibrate(
    model: QuantizedModel,
    batches: Batches,
    *,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    statistics: bool = True,
) -> int:
    """Re-estimate BatchNorm statistics and activation ranges at max_bits, or at the bits to be frozen.

    After training under a precision schedule both are averages over mixed precisions. This replaces them by plain
    averages over the given batches, at the precision that is frozen; dropout is off. Afterwards biases and BatchNorm
    offsets are rounded to multiples of the accumulator scale (`round_biases`), as in the integer model.

    Args:
        model: The model; its mode and bits are restored afterwards.
        batches: Training inputs as in the model's signature, or a DataLoader of (inputs, labels) or of dictionaries.
            Some tens to hundreds of batches are enough. States may be left out: they begin as zeros, and those of a
            fixed size continue from batch to batch. A last batch of one sample is joined to the one before it where
            BatchNorm needs more.
        weight_bits: Bits of the scheduled weights, or of single layers by name, if they are to be frozen at other bits
            than max_bits.
        activation_bits: Bits of the scheduled activations, likewise.
        statistics: Whether BatchNorm statistics are estimated, too. Those of a float model that is only calibrated
            stay as they are.

    Returns:
        The number of batches used.

    Raises:
        DataError: If there is no batch, or none that fits the model; the model is then unchanged.
        UsageError: If bits are out of range, or given for a layer that the model does not have.
    """
    with model.at_max_bits(weight_bits, activation_bits):
        used = estimate(model, batches, statistics=statistics)
        round_biases(model)
    return used


@torch.no_grad()
def estimate(model: QuantizedModel, batches: Batches, *, statistics: bool = True) -> int:
    """Estimate ranges and statistics as `calibrate` does, at the present bits, without rounding offsets.

    Raises:
        DataError: If there is no batch, or none that fits the model; the model is then unchanged.
    """
    inputs: Iterable[Inputs] = _inputs(model, batches, at_least=2 if statistics and model.normalises_samples() else 1)
    if statistics and _shares_norms(model):
        # A BatchNorm that is called twice averages two distributions. Values that are normalised by that average have
        # other ranges than values normalised batch by batch, so ranges are estimated again.
        inputs = list(inputs)
        _observe(model, inputs, statistics=True)
        statistics = False
    return _observe(model, inputs, statistics=statistics)


def _observe(model: QuantizedModel, inputs: Iterable[Inputs], *, statistics: bool) -> int:
    remaining = iter(inputs)
    first = next(remaining, None)
    if first is None:
        raise DataError("Expected at least one batch to calibrate on, but got none")
    state: State | None = None
    used = 0
    with calibrating(model, statistics=statistics):
        for batch in chain([first], remaining):
            state = _called(model, batch, state)
            used += 1
    return used


def _called(model: QuantizedModel, batch: Inputs, before: State | None) -> State | None:
    """Run a model on a batch, and return the state with which the next begins: None for the initial one."""
    signature = model.signature
    if len(batch) == len(signature.inputs):
        model(*batch)
        return None
    fits = before is not None and len(before[0]) == len(batch[0])
    given = dict(zip((tensor.name for tensor in plain_inputs(signature)), batch, strict=True))
    _, after = call_with_state(model, signature, given, before if fits else None)
    return after if carries_state(signature) else None


def _shares_norms(model: QuantizedModel) -> bool:
    """Return whether a BatchNorm that keeps statistics is called more than once in a forward pass."""
    called = Counter(str(node.target) for node in model.network.graph.find_nodes(op="call_module"))
    return any(count > 1 and keeps_statistics(model.network.get_submodule(name)) for name, count in called.items())


def _inputs(model: QuantizedModel, batches: Batches, at_least: int) -> Iterator[Inputs]:
    """Yield batches of inputs on the model's device; one below `at_least` samples is joined to the one before."""
    device = next(model.parameters()).device
    held: Inputs | None = None
    for batch in batches:
        given = tuple(x.to(device) for x in inputs_of(batch, model))
        if held is not None and min(len(given[0]), len(held[0])) < at_least and _fit_together(given, held):
            held = tuple(torch.cat(pair) for pair in zip(held, given, strict=True))
            continue
        if held is not None:
            yield held
        held = given
    if held is not None and len(held[0]) < at_least:
        raise DataError(
            f"Expected batches of at least {at_least} samples, since a BatchNorm normalises over them, "
            f"but got one of {len(held[0])}"
        )
    if held is not None:
        yield held


def _fit_together(one: Inputs, other: Inputs) -> bool:
    return all(x.shape[1:] == y.shape[1:] for x, y in zip(one, other, strict=True))


def inputs_of(batch: Any, model: QuantizedModel) -> Inputs:
    """Return the model's inputs from a batch of a DataLoader, in the order of the model's arguments.

    A single input is the batch itself or the first element of a sequence; several inputs are the first elements of a
    sequence, or a tuple or dictionary that is its first element. In a dictionary, inputs have the names of the
    arguments or of the signature; otherwise a single input is the only tensor of its shape.

    Args:
        batch: The batch.
        model: The model.

    Raises:
        DataError: If no tensors have the inputs' shapes, or values are bytes or not finite.
    """
    found = _found(batch, model)
    if found is None:
        raise DataError(
            f"Expected batches of inputs {_shapes(model)}, but got {_named(batch)}",
            hint="pass tensors, or a DataLoader whose batches are (inputs, ...) or dictionaries with such tensors",
        )
    for x in found:
        if x.dtype == torch.uint8:
            raise DataError("Expected normalised inputs, but got bytes", hint="convert them as in training: to float32")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError(
                "Expected finite inputs, but a batch has values that are not", hint="look at how they are read"
            )
    return tuple(x.float() if x.is_floating_point() else x for x in found)


def _found(batch: Any, model: QuantizedModel) -> list[Tensor] | None:
    signature = model.signature
    found = _fitting(batch, model, signature.inputs)
    return _fitting(batch, model, plain_inputs(signature)) if found is None and signature.states else found


def _fitting(batch: Any, model: QuantizedModel, tensors: Sequence[TensorSpec]) -> list[Tensor] | None:
    """Return the batches of some of a model's inputs."""
    if isinstance(batch, Mapping):
        parameters = dict(zip(model.signature.inputs, model.calling.parameters, strict=True))
        names = ((parameters[tensor], tensor.name) for tensor in tensors)
        named = [batch.get(parameter, batch.get(name)) for parameter, name in names]
        if any(value is None for value in named) and len(tensors) == 1:
            fitting = [value for value in batch.values() if _fits(value, tensors[0])]
            named = fitting if len(fitting) == 1 else [None]
        candidates: Any = named
    elif isinstance(batch, tuple | list) and batch and isinstance(batch[0], tuple | list | Mapping):
        return _fitting(batch[0], model, tensors)
    else:
        candidates = batch[: len(tensors)] if isinstance(batch, tuple | list) else [batch]
    if len(candidates) != len(tensors):
        return None
    fit = all(_fits(value, tensor) for value, tensor in zip(candidates, tensors, strict=True))
    return list(candidates) if fit and len({len(value) for value in candidates}) == 1 else None


def _fits(value: Any, tensor: TensorSpec) -> bool:
    """Return whether a value may be a batch of an input, judging by its shape."""
    if not isinstance(value, Tensor) or value.dim() != len(tensor.shape) + 1 or not len(value):
        return False
    return all(isinstance(size, str) or size == got for size, got in zip(tensor.shape, value.shape[1:], strict=True))


def _shapes(model: QuantizedModel) -> str:
    shapes = ["(" + ", ".join(map(str, (BATCH, *tensor.shape))) + ")" for tensor in model.signature.inputs]
    return " and ".join(shapes)


def _named(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "a dictionary of " + ", ".join(f"{key}: {_named(value)}" for key, value in batch.items())
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {', '.join(map(_named, batch[:4])) or 'nothing'}"
    return f"a {type(batch).__name__}"


@contextmanager
def calibrating(model: QuantizedModel, *, statistics: bool = True) -> Iterator[None]:
    """Make BatchNorms and activation quantizers average over all batches equally; the rest is in evaluation mode."""
    norms = [module for module in model.modules() if statistics and keeps_statistics(module)]
    momenta = [norm.momentum for norm in norms]
    quantizers = [quantizer for _, quantizer in model.quantizers()]
    with in_evaluation(model):
        try:
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
            for quantizer in quantizers:
                quantizer.train()
                quantizer.reset()
                quantizer.cumulative = True
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for quantizer in quantizers:
                quantizer.cumulative = False
