"""Whether a prepared network, its quantizers off, computes what the network computes that was handed in.

Both run on random batches in training and then in evaluation, from the same random state, so that running statistics
count as well. What is still as it was initialised (zeros, ones) would hide differences: on both sides it is varied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.graph.capture.tracing import NoIntegerFormError
from cpt_deploy.quantization.graph.first_difference import first_difference
from cpt_deploy.quantization.graph.handed_in import HandedIn, seed_all, untouched
from cpt_deploy.quantization.graph.signature import only_output
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.state.config import MOST_BITS
from cpt_deploy.quantization.state.precision_state import Bits

#: Sizes of the batches; values of the second are four times as large, and meet bounds that the first does not.
_BATCHES = ((2, 1.0), (3, 4.0))
#: Greatest difference, relative to the greatest result, that float32's rounding explains.
_TOLERANCE = 1e-5
#: The same in float64, of what lay farther apart in float32.
_FLOAT64_TOLERANCE = 2e-6
#: The same where only float32 can be computed and operators are put together differently.
_FLOAT32_TOLERANCE = 1e-4
#: How much more than by one rounding of its input a result may move.
_ROUNDINGS = 64


class DiffersError(NoIntegerFormError):
    """A graph does not compute what the network computes that it was made of."""


@dataclass(frozen=True)
class Run:
    """One batch through a network.

    Attributes:
        training: Whether in training mode.
        seed: Of the random state, and which batch it is.
    """

    training: bool
    seed: int

    @property
    def mode(self) -> str:
        """The mode in words."""
        return "training" if self.training else "evaluation"


RUNS = tuple(Run(training, seed) for training in (True, False) for seed in range(len(_BATCHES)))


@dataclass
class Reference:
    """What a network computes.

    Attributes:
        given: The network.
        batches: The inputs.
        results: One tensor for each of `RUNS`.
    """

    given: HandedIn
    batches: list[Tensor]
    results: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, given: HandedIn, input_shape: tuple[int, ...], dtype: torch.dtype) -> "Reference":
        """Run a network as it was handed in; it is left as it was.

        Raises:
            ConversionError: If it does not take such inputs, or does not return one tensor.
        """
        model = given.model
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        batches = [_batch((size, *input_shape), factor, dtype, generator).to(device) for size, factor in _BATCHES]
        reference = cls(given, batches)
        with untouched(model), given.watched():
            reference.results = reference.run(model)
        return reference

    def run(self, model: nn.Module) -> list[Tensor]:
        """Return what the network computes in each of `RUNS`."""
        with varied(model):
            return [_only_tensor(self._result(model, run), run) for run in RUNS]

    def _result(self, model: nn.Module, run: Run) -> Any:
        try:
            return result_of(model, self.batches[run.seed], run)
        except ConversionError:
            raise
        except Exception as error:
            shape = ", ".join(map(str, self.batches[0].shape[1:]))
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConversionError(
                f"Expected {type(model).__name__} to take an input of shape (N, {shape}) in {run.mode}, "
                f"but it failed: {cause}"
            ) from error

    def check(self, prepared: QuantizedModel) -> None:
        """Compare a prepared network with the one that was handed in; both are left as they were.

        Raises:
            DiffersError: If they compute different things, with the first operation or module that does.
        """
        with float_bits(prepared), varied(prepared):
            for run, expected in zip(RUNS, self.results, strict=True):
                got = self._prepared_result(prepared, run)
                if got.shape != expected.shape or _distance(got, expected) > _TOLERANCE * _size(expected):
                    break
            else:
                return
        self._decide(prepared)

    def _prepared_result(self, prepared: QuantizedModel, run: Run) -> Tensor:
        batch = self.batches[run.seed]
        try:
            result: Tensor = result_of(prepared.network, batch, run)
        except Exception as error:
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise DiffersError(
                f"Expected the graph of {type(self.given.model).__name__} to compute any batch, "
                f"but in {run.mode} one of {len(batch)} failed: {cause}",
                hint="sizes must follow from the input, the batch size above all",
                reason=f"its graph fails on a batch of {len(batch)}: {cause}",
            ) from error
        return result

    def _decide(self, prepared: QuantizedModel) -> None:
        """Compare in float64, where roundings are far below what matters, if both compute in it."""
        try:
            pair, dtype = (deepcopy(self.given.model).double(), deepcopy(prepared).double()), torch.float64
            self._compare(*pair, dtype, _FLOAT64_TOLERANCE)
        except DiffersError:
            raise
        except Exception:  # a network may insist on float32 in any way
            self._compare(self.given.model, prepared, torch.float32, _FLOAT32_TOLERANCE)

    def _compare(self, model: nn.Module, prepared: QuantizedModel, dtype: torch.dtype, tolerance: float) -> None:
        batches = [x.to(dtype) if x.is_floating_point() else x for x in self.batches]
        with untouched(model), float_bits(prepared), varied(model), varied(prepared):
            expected = [result_of(model, batches[run.seed], run) for run in RUNS]
        with float_bits(prepared), varied(prepared):
            results = [result_of(prepared.network, batches[run.seed], run) for run in RUNS]
        for run, want, got in zip(RUNS, map(_tensor, expected), results, strict=True):
            distance = _distance(got, want) if got.shape == want.shape else float("inf")
            if not distance <= tolerance * _size(want) and not distance <= _ROUNDINGS * self._moved(
                model, batches, run, want
            ):
                self._refuse(model, prepared, batches, run, distance, _size(want))

    def _moved(self, model: nn.Module, batches: list[Tensor], run: Run, want: Tensor) -> float:
        """Return how far a result moves when its input is one rounding away."""
        with untouched(model), varied(model):
            nearby = [result_of(model, _rounded(batches[other.seed]), other) for other in RUNS[: RUNS.index(run) + 1]]
        return _distance(_tensor(nearby[-1]), want)

    def _refuse(
        self,
        model: nn.Module,
        prepared: QuantizedModel,
        batches: list[Tensor],
        run: Run,
        distance: float,
        size: float,
    ) -> None:
        def replay(network: nn.Module) -> None:
            for earlier in RUNS[: RUNS.index(run)]:
                result_of(network, batches[earlier.seed], earlier)
            network.train(run.training)
            seed_all(run.seed)

        with untouched(model), float_bits(prepared), varied(model), varied(prepared):
            place = first_difference(model, prepared.network, batches[run.seed], replay)
        raise DiffersError(
            f"Expected the prepared network to compute what {type(model).__name__} computes, but in {run.mode} its "
            f"values differ from {place} on (results by {distance:.3g}, where the greatest is {size:.3g})",
            hint=_advice(self.given, run),
            reason=f"{place} has no integer form that computes the same in {run.mode}",
        )


def _advice(given: HandedIn, run: Run) -> str:
    peculiar = given.peculiar()
    if peculiar:
        return f"{peculiar[0]} belongs to what the network computes: write it into the forward of a module"
    return (
        "a branch on `self.training` is taken as it is in one mode, and what is drawn or counted at each call as it "
        "was once: write what differs between the modes as a module (nn.Dropout, nn.BatchNorm2d, …)"
        if run.training
        else "what forward does must follow from its input, its parameters and its buffers; write what does not as a "
        "module of torch.nn, or leave it out"
    )


# --- running ------------------------------------------------------------------------------------------------------


def result_of(model: nn.Module, batch: Tensor, run: Run) -> Any:
    """Return what a network computes of a batch, in a mode and from a random state."""
    model.train(run.training)
    seed_all(run.seed)
    with torch.no_grad():
        return model(batch.clone())


@contextmanager
def float_bits(prepared: QuantizedModel) -> Iterator[None]:
    """Switch the quantizers of a prepared network off, and leave it as it was afterwards."""
    state = prepared.precision
    before = state.bits()
    with untouched(prepared):
        off = dict.fromkeys(state.weight_bits, MOST_BITS)
        state.restore(Bits(off, off, MOST_BITS, {}))
        try:
            yield
        finally:
            state.restore(before)


@contextmanager
def varied(model: nn.Module) -> Iterator[None]:
    """Vary trained parameters whose values are all alike, by what depends on their size alone; restore them later."""
    trained = [p for p in model.parameters() if p.requires_grad]  # a buffer that is a weight is none of them
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


def _batch(shape: tuple[int, ...], factor: float, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return factor * torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(0, 2, shape, generator=generator, dtype=dtype)


def _rounded(x: Tensor) -> Tensor:
    """Return a batch one rounding away."""
    if not x.is_floating_point():
        return x
    away = torch.where(torch.arange(x.numel(), device=x.device) % 2 == 0, torch.inf, -torch.inf)
    return torch.nextafter(x, away.view(x.shape).to(x))


def _only_tensor(result: Any, run: Run) -> Tensor:
    try:
        tensor: Tensor = only_output(dict(result) if isinstance(result, dict) else result, _is_tensor)
    except ConversionError as error:
        raise ConversionError(f"{error.message} in {run.mode}", hint=error.hint) from error
    return tensor


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _tensor(result: Any) -> Tensor:
    leaves = tree_leaves(dict(result) if isinstance(result, dict) else result)
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return the greatest difference; what is no number on both sides is the same."""
    same = (got == expected) | (got.isnan() & expected.isnan())
    return float(torch.where(same, 0.0, (got - expected).abs()).nan_to_num(torch.inf).max()) if got.numel() else 0.0


def _size(expected: Tensor) -> float:
    finite = expected[expected.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
