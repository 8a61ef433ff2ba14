"""Measure the sharpness of a minimum: eigenvalues and trace of the Hessian, and the rise of the loss nearby."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.analysis.curvature import LossHessian, TraceEstimate, estimate_trace, top_eigenvalues
from cpt_deploy.analysis.directions import filter_norms
from cpt_deploy.analysis.minimum import Batches, mean_loss
from cpt_deploy.errors import UsageError

Coordinates = Literal["absolute", "relative"]
"""Weights as they are ("absolute"), or in units of their filters' norms, which cancels the scale ("relative")."""


@dataclass(frozen=True)
class SharpnessSettings:
    """The settings of a measurement.

    Args:
        eigenvalues: Number of largest eigenvalues.
        tolerance: Their relative accuracy.
        probes: Number of products with random vectors for the trace.
        radius: Radius of the ball in which the loss is maximised, in the coordinates' unit.
        steps: Steps of gradient ascent in the ball; 1 gives the point of sharpness-aware minimisation (SAM).
        seed: Seed of first vectors and probes.
    """

    eigenvalues: int = 1
    tolerance: float = 1e-2
    probes: int = 20
    radius: float = 0.05
    steps: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Sharpness:
    """Sharpness of one minimum in one kind of coordinates.

    Args:
        coordinates: The kind of coordinates.
        loss: Mean cross-entropy at the minimum.
        eigenvalues: The largest eigenvalues of the Hessian, descending.
        trace: Its trace.
        rises: Rise of the quantized network's loss after each step of ascent to the surface of the ball.
    """

    coordinates: Coordinates
    loss: float
    eigenvalues: tuple[float, ...]
    trace: TraceEstimate
    rises: tuple[float, ...]

    @property
    def rise(self) -> float:
        """The largest rise that was found; 0 if the loss fell at every step."""
        return max(0.0, *self.rises)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON types."""
        return {**asdict(self), "rise": self.rise}


def measure_sharpness(
    model: nn.Module,
    batches: Batches,
    coordinates: Coordinates,
    settings: SharpnessSettings | None = None,
    *,
    on_product: Callable[[], None] | None = None,
) -> Sharpness:
    """Measure the sharpness of a network's minimum.

    Args:
        model: The network in evaluation mode; it is not changed.
        batches: Images.
        coordinates: Coordinates in which a change of the weights is measured.
        settings: The settings; the defaults if None.
        on_product: Called after each product with the Hessian and each step of ascent.

    Raises:
        UsageError: If settings are out of range.
        CptError: If the eigenvalues do not converge.
    """
    chosen = settings or SharpnessSettings()
    parameters = list(model.parameters())
    scales = None if coordinates == "absolute" else [filter_norms(parameter.detach()) for parameter in parameters]

    def losses() -> Iterator[tuple[Tensor, int]]:
        for inputs, labels in batches:
            yield functional.cross_entropy(model(inputs), labels), len(labels)

    hessian = LossHessian(parameters, losses, scales=scales, on_product=on_product)
    loss, _ = mean_loss(model, batches)
    return Sharpness(
        coordinates,
        loss,
        tuple(top_eigenvalues(hessian, chosen.eigenvalues, tolerance=chosen.tolerance, seed=chosen.seed)),
        estimate_trace(hessian, chosen.probes, seed=chosen.seed),
        tuple(
            reached - loss
            for reached in ascent_rise(
                parameters, losses, radius=chosen.radius, steps=chosen.steps, scales=scales, on_step=on_product
            )
        ),
    )


def ascent_rise(
    parameters: Sequence[nn.Parameter],
    losses: Callable[[], Iterator[tuple[Tensor, int]]],
    *,
    radius: float,
    steps: int,
    scales: Sequence[Tensor] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[float]:
    """Maximise the loss by gradient ascent on a sphere around the parameters; return the loss after each step.

    The first step is that of sharpness-aware minimisation, `radius · g / ‖g‖` (Foret et al., 2021, equation 2); each
    further step adds `radius` times the unit gradient at the current point and projects back onto the sphere.
    Gradients are straight-through; losses are those of the quantized network. In coordinates relative to the weights
    this is the adaptive sharpness of Kwon et al., 2021, with filters as units.

    Args:
        parameters: The parameters to move; they are restored afterwards.
        losses: The batches' losses at the parameters' current values.
        radius: Radius of the sphere, above 0.
        steps: Number of steps, at least 1.
        scales: The unit of each parameter's coordinates; 1 if None.
        on_step: Called after each step.

    Raises:
        UsageError: If radius or steps are out of range.
    """
    if not 0 < radius < float("inf") or steps < 1:
        raise UsageError(f"Expected a radius above 0 and at least 1 step, but got {radius} and {steps}")
    units = [torch.ones_like(parameter) for parameter in parameters] if scales is None else list(scales)
    start = [parameter.detach().clone() for parameter in parameters]
    offset = [torch.zeros_like(parameter) for parameter in parameters]
    reached = []
    try:
        gradients = _mean_gradient(parameters, losses)[1]
        for _ in range(steps):
            uphill = _of_length(radius, [g * unit for g, unit in zip(gradients, units, strict=True)])
            offset = _of_length(radius, [here + step for here, step in zip(offset, uphill, strict=True)])
            with torch.no_grad():
                for parameter, origin, here, unit in zip(parameters, start, offset, units, strict=True):
                    parameter.copy_(origin + here * unit)
            loss, gradients = _mean_gradient(parameters, losses)
            reached.append(loss)
            if on_step is not None:
                on_step()
    finally:
        with torch.no_grad():
            for parameter, origin in zip(parameters, start, strict=True):
                parameter.copy_(origin)
    return reached


def _mean_gradient(
    parameters: Sequence[nn.Parameter], losses: Callable[[], Iterator[tuple[Tensor, int]]]
) -> tuple[float, list[Tensor]]:
    total, mean, samples = [torch.zeros_like(parameter) for parameter in parameters], 0.0, 0
    for loss, count in losses():
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for whole, part in zip(total, gradients, strict=True):
            whole.add_(part, alpha=count)
        mean += float(loss.detach()) * count
        samples += count
    return mean / samples, [whole / samples for whole in total]


def _of_length(length: float, parts: list[Tensor]) -> list[Tensor]:
    """Scale a vector to the given length; a zero vector stays zero."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in parts]))
    return [part * (length / norm) if norm > 0 else part for part in parts]
