"""Re-estimation of BatchNorm statistics and activation ranges at the precision that will be served."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cpt_deploy.errors import DataError
from cpt_deploy.quantization.calibration.bias_rounding import round_offsets
from cpt_deploy.quantization.graph.capture.training_behaviour import keeps_statistics
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.state.scheduled_model import CyclingModel, WeightBits

Batches = Iterable[Tensor | Sequence[Any] | Mapping[str, Any]]
"""Training inputs, or what a DataLoader yields: (inputs, labels), or a dictionary with the inputs."""


def settle(
    model: QuantizedModel,
    batches: Batches,
    *,
    weight_bits: WeightBits = None,
    activation_bits: int | None = None,
    statistics: bool = True,
) -> int:
    """Re-estimate BatchNorm statistics and activation ranges at the upper bound, or at the bits to be frozen.

    While the bits cycle both are averages over mixed precisions. This replaces them by plain averages over the given
    batches, at the precision that is frozen; dropout is off. Afterwards biases and BatchNorm offsets are rounded to the
    grids of the integer model's biases (`round_offsets`), so that the model computes what its integers will.

    Args:
        model: The model; its mode and bits are restored afterwards.
        batches: Training inputs, each (N, *input_shape), or a DataLoader of (inputs, labels) or of dictionaries. Some
            tens to hundreds are enough. A last batch of one is added to the one before it where BatchNorm needs more.
        weight_bits: Bits of the cycling weights, or of single layers by name, if they are to be frozen at other bits
            than the upper bound.
        activation_bits: Bits of the cycling activations, likewise.
        statistics: Whether BatchNorm statistics are estimated, too. Those of a float model that is only calibrated
            stay as they are.

    Returns:
        The number of batches used.

    Raises:
        DataError: If there is no batch, or none that the model takes; the model is then as before.
        UsageError: If bits are out of range, or given for a layer that the model does not have.
    """
    with model.upper_bound(weight_bits, activation_bits):
        used = estimate(model, batches, statistics=statistics)
        round_offsets(model)
    return used


@torch.no_grad()
def estimate(model: QuantizedModel, batches: Batches, *, statistics: bool = True) -> int:
    """Estimate what `settle` does, at the present bits, and leave the offsets as they are.

    Raises:
        DataError: If there is no batch, or none that the model takes; the model is then as before.
    """
    inputs: Iterable[Tensor] = _inputs(model, batches, at_least=2 if statistics and model.normalises_samples() else 1)
    if statistics and _shares_norms(model):
        # A BatchNorm that is called twice has one average of two distributions. What it then makes of each is another
        # range than that of values normalised batch by batch, so ranges are taken again.
        inputs = list(inputs)
        _observe(model, inputs, statistics=True)
        statistics = False
    return _observe(model, inputs, statistics=statistics)


def _observe(model: QuantizedModel, inputs: Iterable[Tensor], *, statistics: bool) -> int:
    remaining = iter(inputs)
    first = next(remaining, None)
    if first is None:
        raise DataError("Expected at least one batch to settle on, but got none")
    with observing(model, statistics=statistics):
        model(first)
        return 1 + sum(1 for batch in remaining if model(batch) is not None)


def _shares_norms(model: QuantizedModel) -> bool:
    """Return whether a BatchNorm that keeps statistics is called more than once in a forward pass."""
    called = Counter(str(node.target) for node in model.network.graph.find_nodes(op="call_module"))
    return any(count > 1 and keeps_statistics(model.network.get_submodule(name)) for name, count in called.items())


def _inputs(model: QuantizedModel, batches: Batches, at_least: int) -> Iterator[Tensor]:
    """Yield the inputs of batches on the model's device; those of less than `at_least` samples with the one before."""
    device = next(model.parameters()).device
    held: Tensor | None = None
    for batch in batches:
        x = input_of(batch, model.input_shape).to(device)
        if held is not None and min(len(x), len(held)) < at_least:
            held = torch.cat((held, x))
            continue
        if held is not None:
            yield held
        held = x
    if held is not None and len(held) < at_least:
        raise DataError(
            f"Expected batches of at least {at_least} samples, since a BatchNorm normalises over them, "
            f"but got one of {len(held)}"
        )
    if held is not None:
        yield held


def input_of(batch: Any, input_shape: tuple[int, ...]) -> Tensor:
    """Return the inputs of what a DataLoader yields: itself, the first of a sequence, the fitting one of a dictionary.

    Args:
        batch: What it yields.
        input_shape: Shape of one input.

    Raises:
        DataError: If there is none of that shape, or its values are bytes or not finite.
    """
    if isinstance(batch, Mapping):
        fitting = [v for v in batch.values() if isinstance(v, Tensor) and tuple(v.shape[1:]) == input_shape]
        found = fitting[0] if len(fitting) == 1 else None
    else:
        found = batch[0] if isinstance(batch, tuple | list) and batch else batch
    shape = ", ".join(map(str, ("N", *input_shape)))
    if not isinstance(found, Tensor) or tuple(found.shape[1:]) != input_shape or not len(found):
        raise DataError(
            f"Expected batches of inputs ({shape}), but got {_named(batch)}",
            hint="pass tensors, or a DataLoader whose batches are (inputs, ...) or dictionaries with one such tensor",
        )
    if found.dtype == torch.uint8:
        raise DataError("Expected normalised inputs, but got bytes", hint="convert them as in training: to float32")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise DataError("Expected finite inputs, but a batch has values that are not", hint="look at how they are read")
    return found.float() if found.is_floating_point() else found


def _named(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "a dictionary of " + ", ".join(f"{key}: {_named(value)}" for key, value in batch.items())
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {', '.join(map(_named, batch[:4])) or 'nothing'}"
    return f"a {type(batch).__name__}"


@contextmanager
def observing(model: CyclingModel, *, statistics: bool = True) -> Iterator[None]:
    """Inside the context BatchNorms and edges average over all batches alike; everything else is in evaluation."""
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in model.modules() if statistics and keeps_statistics(module)]
    momenta = [norm.momentum for norm in norms]
    edges = [edge for _, edge in model.edges()]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        for edge in edges:
            edge.train()
            edge.reset()
            edge.cumulative = True
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for edge in edges:
            edge.cumulative = False
        for module, mode in modes.items():
            module.training = mode
