"""Compute the largest eigenvalues and the trace of the Hessian of the mean loss from its products with vectors.

Rounding has derivative 0 almost everywhere, so a quantized network's loss has no useful Hessian, and finite differences
of it measure the rounding steps. Used instead is the Hessian of the function that the straight-through estimator
differentiates, in which each quantizer adds its current rounding error as a constant. That function has the network's
loss at the minimum, its gradient is that of training, and it is smooth wherever the float network is. Double backward
gives its second derivatives, as the backward of the quantizers is the identity.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cpt_deploy.errors import CptError, MissingExtraError, UsageError

Vector = npt.NDArray[np.float64]
Losses = Callable[[], Iterable[tuple[Tensor, int]]]
"""A function that yields the mean loss of each batch, 0-dim with an autograd graph, and its number of samples."""


class LossHessian:
    """The symmetric matrix of second derivatives of a mean loss, as a linear operator: the matrix is never stored.

    Args:
        parameters: The parameters to differentiate by.
        losses: The batches' losses at the parameters' current values.
        scales: For each parameter the unit of its coordinates, broadcastable to it; with the filters' norms the result
            is for changes relative to them, `D H D`. 1 if None.
        on_product: Called after each product.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        losses: Losses,
        *,
        scales: Sequence[Tensor] | None = None,
        on_product: Callable[[], None] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.losses, self.on_product = losses, on_product
        self.scales = None if scales is None else list(scales)
        self.size = sum(parameter.numel() for parameter in self.parameters)

    def product(self, vector: Vector) -> Vector:
        """Return the Hessian times a vector, both (size,)."""
        parts = self._scaled(self._split(vector))
        total, samples = [torch.zeros_like(parameter) for parameter in self.parameters], 0
        for loss, count in self.losses():
            gradients = torch.autograd.grad(
                loss, self.parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            projected = torch.stack([(g * part).sum() for g, part in zip(gradients, parts, strict=True)]).sum()
            second = torch.autograd.grad(projected, self.parameters, allow_unused=True, materialize_grads=True)
            for whole, part in zip(total, second, strict=True):
                whole.add_(part, alpha=count)
            samples += count
        if self.on_product is not None:
            self.on_product()
        flat = torch.cat([part.reshape(-1) for part in self._scaled(total)]) / samples
        result: Vector = flat.cpu().numpy().astype(np.float64)
        return result

    def _split(self, vector: Vector) -> list[Tensor]:
        flat = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1))
        pieces = torch.split(flat, [parameter.numel() for parameter in self.parameters])
        return [piece.view(p.shape).to(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    def _scaled(self, parts: list[Tensor]) -> list[Tensor]:
        if self.scales is None:
            return parts
        return [part * scale for part, scale in zip(parts, self.scales, strict=True)]


def top_eigenvalues(hessian: LossHessian, count: int = 1, *, tolerance: float = 1e-3, seed: int = 0) -> list[float]:
    """Return the largest eigenvalues, descending, by Lanczos' method (ARPACK).

    Args:
        hessian: The matrix.
        count: Number of eigenvalues, less than the size of the matrix.
        tolerance: Relative accuracy.
        seed: Seed of the first vector.

    Raises:
        UsageError: If `count` is out of range.
        MissingExtraError: If SciPy is not installed.
        CptError: If the method does not converge.
    """
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    except ImportError as error:
        raise MissingExtraError(
            "Expected SciPy, which finds the eigenvalues, but it is not installed",
            extra="analysis",
        ) from error

    if not 0 < count < hessian.size:
        raise UsageError(f"Expected 1 to {hessian.size - 1} eigenvalues, but got {count}")
    operator: Any = LinearOperator((hessian.size, hessian.size), matvec=hessian.product, dtype=np.float64)
    first = np.random.default_rng(seed).standard_normal(hessian.size)
    try:
        found = eigsh(operator, k=count, which="LA", tol=tolerance, v0=first, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise CptError(
            f"Expected Lanczos' method to find {count} eigenvalues, but it converged for {len(error.eigenvalues)}",
            hint="ask for fewer, or for less accuracy",
        ) from error
    return sorted((float(value) for value in found), reverse=True)


@dataclass(frozen=True)
class TraceEstimate:
    """A trace estimated from random probes.

    Args:
        mean: The estimate.
        standard_error: Its standard error over the probes; `None` with one probe.
        probes: Number of probes.
    """

    mean: float
    standard_error: float | None
    probes: int


def estimate_trace(hessian: LossHessian, probes: int = 20, *, seed: int = 0) -> TraceEstimate:
    """Estimate the trace, the sum of all eigenvalues, by Hutchinson's method: the mean of `vᵀHv` over random signs v.

    Args:
        hessian: The matrix.
        probes: Number of products with random vectors, at least 1.
        seed: Seed of the signs.

    Raises:
        UsageError: If `probes` is less than 1.
    """
    if probes < 1:
        raise UsageError(f"Expected at least 1 probe, but got {probes}")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(probes):
        signs = generator.choice(np.array([-1.0, 1.0]), hessian.size)
        values.append(float(signs @ hessian.product(signs)))
    error = float(np.std(values, ddof=1) / np.sqrt(probes)) if probes > 1 else None
    return TraceEstimate(float(np.mean(values)), error, probes)
