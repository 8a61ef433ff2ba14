"""Re-estimation of BatchNorm statistics and activation ranges at the precision that will be served."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cpt_deploy.errors import DataError
from cpt_deploy.quantization.cycling import CyclingModel, WeightBits
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.offsets import round_offsets

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def settle(
    model: QuantizedModel,
    batches: Iterable[Tensor],
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
        batches: Training inputs, each (N, *input_shape), on the model's device. Some tens to hundreds are enough.
        weight_bits: Bits of the cycling weights, or of single layers by name, if they are to be frozen at other bits
            than the upper bound.
        activation_bits: Bits of the cycling activations, likewise.
        statistics: Whether BatchNorm statistics are estimated, too. Those of a float model that is only calibrated
            stay as they are.

    Returns:
        The number of batches used.

    Raises:
        DataError: If there is no batch; the model is then as before.
        UsageError: If bits are out of range, or given for a layer that the model does not have.
    """
    with model.upper_bound(weight_bits, activation_bits):
        used = estimate(model, batches, statistics=statistics)
        round_offsets(model)
    return used


@torch.no_grad()
def estimate(model: QuantizedModel, batches: Iterable[Tensor], *, statistics: bool = True) -> int:
    """Estimate what `settle` does, at the present bits, and leave the offsets as they are.

    Raises:
        DataError: If there is no batch; the model is then as before.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise DataError("Expected at least one batch to settle on, but got none")
    with observing(model, statistics=statistics):
        model(first)
        return 1 + sum(1 for batch in iterator if model(batch) is not None)


@contextmanager
def observing(model: CyclingModel, *, statistics: bool = True) -> Iterator[None]:
    """Inside the context BatchNorms and edges average over all batches alike; everything else is in evaluation."""
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in model.modules() if statistics and isinstance(module, _NORMS)]
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
