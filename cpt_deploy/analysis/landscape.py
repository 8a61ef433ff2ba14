"""Measure the loss on a line or a plane through a minimum.

As in the code of Li et al., 2018, the network is in evaluation mode: BatchNorm keeps the running statistics of the
minimum, and biases and BatchNorm's parameters are unchanged. Only the float weights, before quantization, are moved:
the weights of each point are quantized again at max_bits, with new scales; activations keep their ranges.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cpt_deploy.analysis.directions import filter_normalized, random_direction
from cpt_deploy.analysis.minimum import Batches, mean_loss
from cpt_deploy.errors import UsageError


class Point(NamedTuple):
    """A point of the line or plane, in multiples of the directions; y is 0 on a line."""

    x: float
    y: float


class Value(NamedTuple):
    """Mean cross-entropy and accuracy, 0 to 1, at a point."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Grid:
    """The points to measure.

    Args:
        points: Number of points in each dimension, odd so that the minimum is one of them.
        extent: The largest multiple of a direction; 1 changes each filter by its own norm.
        dimensions: 1 for a line, 2 for a plane.
    """

    points: int = 21
    extent: float = 1.0
    dimensions: int = 2

    def __post_init__(self) -> None:
        if self.points < 3 or self.points % 2 == 0:
            raise UsageError(f"Expected an odd number of at least 3 points, but got {self.points}")
        if not 0 < self.extent < float("inf"):
            raise UsageError(f"Expected an extent above 0, but got {self.extent}")
        if self.dimensions not in (1, 2):
            raise UsageError(f"Expected 1 or 2 dimensions, but got {self.dimensions}")

    @property
    def ticks(self) -> tuple[float, ...]:
        """The multiples of a direction, ascending."""
        half = self.points // 2
        return tuple(self.extent * index / half for index in range(-half, half + 1))

    def __iter__(self) -> Iterator[Point]:
        for y in self.ticks if self.dimensions == 2 else (0.0,):
            for x in self.ticks:
                yield Point(x, y)

    def __len__(self) -> int:
        return int(self.points**self.dimensions)


@dataclass(frozen=True)
class Landscape:
    """The loss around one minimum.

    Args:
        grid: The points.
        values: The measured value at each point.
    """

    grid: Grid
    values: Mapping[Point, Value]

    @property
    def losses(self) -> list[list[float]]:
        """The losses, one row per y, ascending; a single row for a line."""
        return self._matrix(0)

    @property
    def accuracies(self) -> list[list[float]]:
        """The accuracies, 0 to 1, in the same layout."""
        return self._matrix(1)

    @property
    def centre(self) -> Value:
        """The value measured at the minimum."""
        return self.values[Point(0.0, 0.0)]

    @property
    def mean_rise(self) -> float:
        """Mean of the loss over all points, minus that of the minimum."""
        return float(np.mean([value.loss for value in self.values.values()])) - self.centre.loss

    def _matrix(self, column: int) -> list[list[float]]:
        values = [self.values[point][column] for point in self.grid]
        return [values[start : start + self.grid.points] for start in range(0, len(values), self.grid.points)]


def landscape_of(
    model: nn.Module,
    batches: Batches,
    grid: Grid,
    *,
    seed: int = 0,
    known: Mapping[Point, Value] | None = None,
    jobs: int = 1,
    on_point: Callable[[Point, Value], None] | None = None,
) -> Landscape:
    """Measure the loss around a network's weights in random, filter-normalised directions.

    Each job measures one point at a time: on a CPU that is two to four times as fast as a batch of networks under
    `torch.func.vmap`, whose convolutions become grouped convolutions (benchmarks/landscape.py).

    Args:
        model: The network in evaluation mode; it is not changed.
        batches: Images.
        grid: The points.
        seed: Seed of the directions; networks of one architecture get the same directions.
        known: Points that were measured before; they are not measured again.
        jobs: Number of points measured at once, each in a thread with a copy of the network.
        on_point: Called with each new point.
    """
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    directions = [
        filter_normalized(random_direction(weights, seed=seed, number=number), weights)
        for number in range(grid.dimensions)
    ]
    values = dict(known or {})
    models: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(jobs):
        models.put(copy.deepcopy(model))

    def measure(point: Point) -> tuple[Point, Value]:
        own = models.get()
        try:
            _move(own, weights, directions, point)
            return point, Value(*mean_loss(own, batches))
        finally:
            models.put(own)

    with ThreadPoolExecutor(jobs) as executor:
        waiting = [executor.submit(measure, point) for point in grid if point not in values]
        try:
            for future in as_completed(waiting):
                point, value = future.result()
                values[point] = value
                if on_point is not None:
                    on_point(point, value)
        finally:
            executor.shutdown(cancel_futures=True)
    return Landscape(grid, {point: values[point] for point in grid})


@torch.no_grad()
def _move(
    model: nn.Module, weights: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]], point: Point
) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
        for multiple, direction in zip(point, directions, strict=False):  # a line has no second direction
            parameter.add_(direction[name], alpha=multiple)
