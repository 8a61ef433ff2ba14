"""Check that a prepared network with its quantizers off computes the same as the original network.

Both run on random batches in training and then in evaluation, from the same random state, so that running statistics
are compared as well. Parameters at their initial value (zeros, ones) would hide differences, so they are varied on both
sides.
"""

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.conversion.comparison.first_difference import first_difference
from cpt_deploy.quantization.conversion.comparison.handed_in import HandedIn, seed_all, untouched
from cpt_deploy.quantization.conversion.comparison.running import (
    Inputs,
    Run,
    float_bits,
    result_of,
    tensors_of,
    varied,
    with_list,
)
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError
from cpt_deploy.quantization.graph.results import Structure, check_batch_first
from cpt_deploy.quantization.graph.signature import Example
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.signature import Signature

#: Size and scale of each batch. Values of the second are four times as large, so they reach bounds that the first does
#: not. The other free dimensions have the sizes of `Signature.trials`, which are four for networks with states.
_BATCHES = ((2, 1.0), (3, 4.0), (1, 1.0), (4, 1.0))
#: The number of batches that run in training, too: the others are calls as in serving.
_TRAINED = 2
#: Maximum difference, relative to the largest result that differs, that float32 rounding explains.
_TOLERANCE = 1e-5
#: The same in float64, for results that differed by more in float32.
_FLOAT64_TOLERANCE = 2e-6
#: The same where only float32 can be computed and operators are composed differently.
_FLOAT32_TOLERANCE = 1e-4
#: By how many times the effect of one rounding of its input a result may differ.
_ROUNDINGS = 64


class DiffersError(NoIntegerFormError):
    """A graph does not compute the same as the network that it was made from."""


@dataclass
class Reference:
    """The results of a network on random batches, to compare prepared networks with.

    Attributes:
        given: The network.
        example: Its inputs.
        structure: Structure of its outputs.
        batches: The inputs.
        runs: The batches in training, then in evaluation.
        results: The tensors of each of `runs`.
    """

    given: HandedIn
    example: Example
    structure: Structure
    batches: list[Inputs]
    runs: list[Run]
    results: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, given: HandedIn, example: Example) -> "Reference":
        """Run the original network, and leave it unchanged.

        Raises:
            ConversionError: If it does not accept the inputs, does not return the same tensors in both modes, or the
                first dimension of a result is not the batch.
        """
        model = given.model
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        trials = example.signature.trials()
        batches: list[Inputs] = []
        for (rows, factor), sizes in zip(_BATCHES, trials if len(trials) > 1 else trials * _TRAINED, strict=False):
            batches.append(tuple(x.to(device) for x in example.random(rows, factor, generator, sizes)))
        runs = [Run(True, seed) for seed in range(_TRAINED)] + [Run(False, seed) for seed in range(len(batches))]
        with untouched(model), given.watched(), varied(model):
            found = [_checked_result(model, example, batches[run.seed], run) for run in runs]
            if all(len(batch[0]) > 1 for batch in batches):
                alone, run = tuple(x[:1] for x in batches[0]), Run(False, len(batches))
                with suppress(ConversionError):  # a BatchNorm without running averages may not take a single row
                    found.append(_checked_result(model, example, alone, run))
                    batches.append(alone)
                    runs.append(run)
        structures = [Structure(result) for result in found]
        other = next((run for run, one in zip(runs, structures, strict=True) if one != structures[-1]), None)
        if other is not None:
            raise ConversionError(
                f"Expected a network that always returns the same structure of tensors, but {type(model).__name__} "
                f"returns others in {other.mode} of {len(batches[other.seed][0])} samples than in {runs[-1].mode}",
                hint="switch auxiliary outputs off, or wrap it in a module whose forward always returns the same",
            )
        results = [structures[0].tensors(result) for result in found]
        for run, tensors in zip(runs, results, strict=True):
            check_batch_first(tensors, len(batches[run.seed][0]))
        return cls(given, example, structures[0], batches, runs, results)

    def result(self, model: nn.Module, batch: Inputs, run: Run) -> list[Tensor]:
        """Return the output tensors of the network for a batch, in the mode and from the random state of a run."""
        tensors: list[Tensor] = self.structure.tensors(result_of(partial(self.example.call, model), model, batch, run))
        return tensors

    def check(self, prepared: QuantizedModel) -> None:
        """Compare a prepared network with the original one; both are left unchanged.

        Raises:
            DiffersError: If their results differ; names the first operation or module that differs.
        """
        with float_bits(prepared), varied(prepared):
            for run, expected in zip(self.runs, self.results, strict=True):
                if not all(map(are_close, self._prepared_result(prepared, run), expected)):
                    break
            else:
                return
        self._decide(prepared)

    def _prepared_result(self, prepared: QuantizedModel, run: Run) -> list[Tensor]:
        batch = self.batches[run.seed]
        try:
            return tensors_of(prepared.network, batch, run)
        except Exception as error:
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise DiffersError(
                f"Expected the graph of {type(self.given.model).__name__} to compute any batch, "
                f"but in {run.mode} one of {_sizes(batch, self.example.signature)} failed: {cause}",
                hint="sizes must be derived from the input, above all the batch size",
                reason=f"its graph fails on a batch of {_sizes(batch, self.example.signature)}: {cause}",
            ) from error

    def _decide(self, prepared: QuantizedModel) -> None:
        """Compare in float64, where rounding is negligible, if both can compute in it."""
        try:
            pair, dtype = (deepcopy(self.given.model).double(), deepcopy(prepared).double()), torch.float64
            self._compare(*pair, dtype, _FLOAT64_TOLERANCE)
        except DiffersError:
            raise
        except Exception:  # a network may insist on float32 in any way
            self._compare(self.given.model, prepared, torch.float32, _FLOAT32_TOLERANCE)

    def _compare(self, model: nn.Module, prepared: QuantizedModel, dtype: torch.dtype, tolerance: float) -> None:
        batches = [tuple(x.to(dtype) if x.is_floating_point() else x for x in batch) for batch in self.batches]
        with untouched(model), float_bits(prepared), varied(model), varied(prepared):
            expected = [self.result(model, batches[run.seed], run) for run in self.runs]
        with float_bits(prepared), varied(prepared):
            results = [tensors_of(prepared.network, batches[run.seed], run) for run in self.runs]
        for run, wanted, gotten in zip(self.runs, expected, results, strict=True):
            for place, (want, got) in enumerate(zip(wanted, gotten, strict=True)):
                alike = got.shape == want.shape
                distance, size = (_distance(got, want), _size(want, got)) if alike else (float("inf"), 0.0)
                if not distance <= tolerance * size and not distance <= _ROUNDINGS * self._moved(
                    model, batches, run, place, want
                ):
                    self._refuse(model, prepared, batches, run, distance, size)

    def _moved(self, model: nn.Module, batches: list[Inputs], run: Run, place: int, want: Tensor) -> float:
        """Return how far a result moves when its inputs change by one rounding."""
        with untouched(model), varied(model):
            nearby = [
                self.result(model, tuple(map(_rounded, batches[other.seed])), other)
                for other in self.runs[: self.runs.index(run) + 1]
            ]
        return _distance(nearby[-1][place], want)

    def _refuse(
        self,
        model: nn.Module,
        prepared: QuantizedModel,
        batches: list[Inputs],
        run: Run,
        distance: float,
        size: float,
    ) -> None:
        call = partial(self.example.call, model)

        def replay(network: nn.Module) -> None:
            for earlier in self.runs[: self.runs.index(run)]:
                result_of(call if network is model else with_list(network), network, batches[earlier.seed], earlier)
            network.train(run.training)
            seed_all(run.seed)

        with untouched(model), float_bits(prepared), varied(model), varied(prepared):
            place = first_difference(model, call, prepared.network, batches[run.seed], replay)
        raise DiffersError(
            f"Expected the prepared network to compute what {type(model).__name__} computes, but in {run.mode} its "
            f"values differ from {place} on (results by {distance:.3g}, where the largest that differs is {size:.3g})",
            hint=_advice(self.given, run),
            reason=f"{place} has no integer form that computes the same in {run.mode}",
        )


def _advice(given: HandedIn, run: Run) -> str:
    peculiar = given.peculiar()
    if peculiar:
        return f"{peculiar[0]} is part of the computation: write it into the forward of a module"
    return (
        "a branch on `self.training` is traced in one mode, and values that are drawn or counted at each call are "
        "traced once: write computations that differ between the modes as modules (nn.Dropout, nn.BatchNorm2d, …)"
        if run.training
        else "forward must depend only on its input, its parameters and its buffers; write other computations as "
        "modules of torch.nn, or leave them out"
    )


def _checked_result(model: nn.Module, example: Example, batch: Inputs, run: Run) -> Any:
    try:
        return result_of(partial(example.call, model), model, batch, run)
    except ConversionError:
        raise
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        others = example.signature.free and run.seed
        raise ConversionError(
            f"Expected {type(model).__name__} to take {example.described()} in {run.mode}, but "
            + (f"a batch of {_sizes(batch, example.signature)} " if others else "it ")
            + f"failed: {cause}",
            hint='where sizes have to be multiples, dynamic_shapes says so: 8 * Dim("height")' if others else None,
        ) from error


def _rounded(x: Tensor) -> Tensor:
    """Return a batch that is one float32 rounding away from `x`."""
    if not x.is_floating_point():
        return x
    away = torch.where(torch.arange(x.numel(), device=x.device) % 2 == 0, torch.inf, -torch.inf)
    return torch.nextafter(x, away.view(x.shape).to(x))


def are_close(got: Tensor, expected: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Return whether values differ by no more than a tolerance relative to the largest that differs."""
    return got.shape == expected.shape and _distance(got, expected) <= tolerance * _size(expected, got)


def _sizes(batch: Inputs, signature: Signature) -> str:
    """Return the sizes of a batch in words: the number of samples, and its other free sizes."""
    shapes = ", ".join(str(tuple(x.shape)) for x in batch)
    return f"{len(batch[0])} samples {shapes}" if signature.free else str(len(batch[0]))


def _distance(got: Tensor, expected: Tensor) -> float:
    """Return the maximum difference; values that are NaN on both sides count as equal."""
    same = (got == expected) | (got.isnan() & expected.isnan())
    return float(torch.where(same, 0.0, (got - expected).abs()).nan_to_num(torch.inf).max()) if got.numel() else 0.0


def _size(expected: Tensor, got: Tensor) -> float:
    """Return the largest value that differs: constants, such as -1e9 of a mask, say nothing about the others."""
    differing = expected[(expected != got) & expected.isfinite()]
    return float(differing.abs().max()) if differing.numel() else 0.0
