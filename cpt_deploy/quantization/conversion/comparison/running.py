"""Run a network on random batches, in training and in evaluation, each time from the same random state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cpt_deploy.quantization.conversion.comparison.handed_in import seed_all, untouched
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.state.config import MAX_BITS
from cpt_deploy.quantization.state.precision_state import Bits

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Run:
    """One batch through a network.

    Attributes:
        training: Whether in training mode.
        seed: Seed of the random state, and index of the batch.
    """

    training: bool
    seed: int

    @property
    def mode(self) -> str:
        """The mode in words."""
        return "training" if self.training else "evaluation"


def result_of(call: Callable[..., Any], model: nn.Module, batch: Inputs, run: Run) -> Any:
    """Return the result of a call of a network on a batch, in the mode and from the random state of a run."""
    model.train(run.training)
    seed_all(run.seed)
    with torch.no_grad():
        return call([x.clone() for x in batch])


def tensors_of(network: nn.Module, batch: Inputs, run: Run) -> list[Tensor]:
    """Return the output tensors of a graph for a batch, in the mode and from the random state of a run."""
    result = result_of(with_list(network), network, batch, run)
    return [result] if isinstance(result, Tensor) else list(result)


def with_list(network: nn.Module) -> Callable[[list[Tensor]], Any]:
    """Return a function that calls a network with a list of its inputs."""
    return lambda inputs: network(*inputs)


@contextmanager
def float_bits(prepared: QuantizedModel) -> Iterator[None]:
    """Switch the quantizers of a prepared network off inside the context, and restore them afterwards."""
    state = prepared.precision
    before = state.bits()
    with untouched(prepared):
        off = dict.fromkeys(state.weight_bits, MAX_BITS)
        state.restore(Bits(off, off, MAX_BITS, {}))
        try:
            yield
        finally:
            state.restore(before)


@contextmanager
def varied(model: nn.Module) -> Iterator[None]:
    """Vary trained parameters whose values are all equal, as a function of their size alone, and restore them."""
    trained = [p for p in model.parameters() if p.requires_grad]  # weights that are buffers are not trained
    alike = [p for p in trained if p.is_floating_point() and p.numel() and _is_constant(p)]
    before = [parameter.detach().clone() for parameter in alike]
    with torch.no_grad():
        for parameter in alike:
            generator = torch.Generator().manual_seed(parameter.numel())
            noise = torch.rand(parameter.numel(), generator=generator, dtype=torch.float32) - 0.5
            size = max(1.0, abs(float(parameter.flatten()[0])))
            parameter.add_(0.5 * size * noise.view(parameter.shape).to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(alike, before, strict=True):
                parameter.copy_(values)


def _is_constant(parameter: Tensor) -> bool:
    first = parameter.detach().flatten()[:2]
    return bool(first[0] == first[-1]) and bool((parameter == first[0]).all())
