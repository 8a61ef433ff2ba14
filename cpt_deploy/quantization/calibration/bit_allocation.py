"""Mixed precision: measure each layer's sensitivity to fewer bits, and choose bits per layer within a size budget.

Each layer alone is quantized to fewer bits, and the cost is the divergence of the outputs: of probabilities in nats, if
the model returns logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.quantization.calibration.calibrate import inputs_of
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.quantization.stateful import with_initial_state

#: A budget is a fraction of the size of all weights at this number of bits.
REFERENCE_BITS = 8


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """Size of a layer's weights, and the cost of fewer bits for them.

    Attributes:
        name: Module path of the layer.
        weights: Number of its weights.
        cost: By bits, the loss in nats with only this layer at those bits, compared to all layers at max_bits.
        max_bits: The layer's max_bits.
    """

    name: str
    weights: int
    cost: Mapping[int, float]
    max_bits: int = REFERENCE_BITS


def class_divergence(reference: Tensor, outputs: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of class probabilities from others, in nats, summed over samples, 0-dim.

    Args:
        reference: Logits or log-probabilities of the reference, (N, ..., K).
        outputs: Those of the model, likewise.
    """
    log, other = (functional.log_softmax(scores, dim=-1) for scores in (reference, outputs))
    return functional.kl_div(other, log, reduction="sum", log_target=True)


def measure_sensitivity(
    model: QuantizedModel,
    batches: Sequence[Any],
    candidates: Sequence[int],
    *,
    divergence: Callable[[Any, Any], Tensor] = class_divergence,
    activation_bits: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[LayerSensitivity]:
    """Measure how single layers at fewer bits change the outputs of a model.

    Meanwhile BatchNorm uses each batch's own statistics, since calibration at those bits would estimate new ones.

    Args:
        model: A trained model, calibrated at `activation_bits`; it is not changed.
        batches: Training inputs as `calibrate` takes them, each of N > 1 samples; a few hundred samples in all.
        candidates: Bits to try in each scheduled layer.
        divergence: Returns the divergence of outputs from others of the same batch, summed over its samples.
        activation_bits: Bits of the scheduled activations; None is max_bits.
        progress: Called with the number of layers that are done.

    Returns:
        An entry for each scheduled layer, in the order of the graph. The cost is the mean divergence of a sample from
        the outputs with all layers at max_bits.

    Raises:
        DataError: If there is no batch.
    """
    if not batches:
        raise DataError("Expected at least one batch to measure sensitivity on, but got none")
    inputs = [with_initial_state(model.signature, inputs_of(batch, model)) for batch in batches]
    samples = sum(len(batch[0]) for batch in inputs)
    with torch.no_grad(), _batch_statistics(model):
        with model.at_max_bits(None, activation_bits):
            reference = [model(*batch) for batch in inputs]

        def cost() -> float:
            pairs = zip(reference, inputs, strict=True)
            return sum(float(divergence(outputs, model(*batch))) for outputs, batch in pairs) / samples

        return _measure(model, cost, candidates, activation_bits, progress)


def _measure(
    model: QuantizedModel,
    cost: Callable[[], float],
    candidates: Sequence[int],
    activation_bits: int | None,
    progress: Callable[[int], None],
) -> list[LayerSensitivity]:
    """Set each scheduled layer alone to each of the candidate bits up to max_bits, and return the costs."""
    results = []
    scheduled = [layer for layer in model.layers() if layer.group != "fixed"]
    for done, layer in enumerate(scheduled, start=1):
        costs, max_bits = {}, model.precision.max_bits_of(layer.group)
        for bits in (candidate for candidate in candidates if candidate <= max_bits):
            with model.at_max_bits({layer.name: bits}, activation_bits):
                costs[bits] = cost()
        results.append(LayerSensitivity(layer.name, layer.weights, costs, max_bits))
        progress(done)
    return results


@contextmanager
def _batch_statistics(model: QuantizedModel) -> Iterator[None]:
    """Inside the context BatchNorms use batch statistics and keep their averages; the rest is in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    with in_evaluation(model):
        try:
            for norm in norms:
                norm.train()
                norm.momentum, count = 0.0, norm.num_batches_tracked
                norm.num_batches_tracked = None if count is None else count.clone()
            yield
        finally:
            for norm, (momentum, count) in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, count


def allocate_bits(
    layers: Sequence[LayerSensitivity], *, budget: float, fixed_weights: int, max_bits: int = REFERENCE_BITS
) -> dict[str, int]:
    """Choose bits for each layer so that all weights together stay within a budget.

    All layers begin at max_bits. The step with the lowest cost per bit saved is taken repeatedly until the budget is
    met; the rest of the budget is then spent on the bits that gain the most.

    Args:
        layers: Sensitivity of the layers that may have fewer bits.
        budget: Maximum size of all weights, as a fraction of their size at 8 bits, in (0, 1].
        fixed_weights: Number of weights in the other layers, which keep max_bits.
        max_bits: Bits at which all layers begin, and which the other layers keep.

    Returns:
        Bits by layer name.

    Raises:
        UsageError: If the budget is out of range or cannot be met.
    """
    tops = {layer.name: min(max_bits, layer.max_bits) for layer in layers}
    costs = {layer.name: _costs(layer, tops[layer.name]) for layer in layers}
    sizes = {layer.name: layer.weights for layer in layers}
    whole = REFERENCE_BITS * (fixed_weights + sum(sizes.values()))
    room = budget * whole - max_bits * fixed_weights
    lowest = {name: min(cost) for name, cost in costs.items()}
    if not 0 < budget <= 1 or sum(lowest[name] * sizes[name] for name in sizes) > room:
        reachable = (max_bits * fixed_weights + sum(lowest[name] * sizes[name] for name in sizes)) / whole
        raise UsageError(
            f"Expected a budget from {reachable:.3f} to 1 of the weights' size at 8 bits, but got {budget:g}",
            hint="the first and the last layer keep max_bits, and no layer goes below the bits it trained at",
        )
    bits = dict(tops)
    while sum(bits[name] * sizes[name] for name in sizes) > room:
        steps = [(name, b) for name in sizes for b in costs[name] if b < bits[name]]
        name, bits_then = min(steps, key=lambda step: _price(costs[step[0]], sizes[step[0]], bits[step[0]], step[1]))
        bits[name] = bits_then
    return _spend_rest(bits, costs, sizes, room)


def _costs(layer: LayerSensitivity, max_bits: int) -> dict[int, float]:
    """Return the cost by bits, made monotonic against noise: it never falls with fewer bits, and is 0 at max_bits."""
    costs, worst = {max_bits: 0.0}, 0.0
    for bits in sorted((b for b in layer.cost if b < max_bits), reverse=True):
        worst = max(worst, layer.cost[bits])
        costs[bits] = worst
    return costs


def _price(cost: Mapping[int, float], size: int, now: int, then: int) -> tuple[float, int]:
    """Return the sort key of a step: the cost per bit saved, then, for equal costs, the larger saving first."""
    saved = (now - then) * size
    return (cost[then] - cost[now]) / saved, -saved


def _spend_rest(
    bits: dict[str, int], costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], room: float
) -> dict[str, int]:
    while True:
        left = room - sum(bits[name] * sizes[name] for name in sizes)
        steps = [
            (name, b)
            for name in sizes
            for b in costs[name]
            if b > bits[name] and (b - bits[name]) * sizes[name] <= left and costs[name][b] < costs[name][bits[name]]
        ]
        if not steps:
            return bits
        name, bits_then = max(steps, key=lambda step: _price(costs[step[0]], sizes[step[0]], step[1], bits[step[0]])[0])
        bits[name] = bits_then
