"""Derive a network's signature and calling convention from example inputs, and make random inputs of that kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.parameter import is_lazy

from cpt_deploy.errors import ConversionError
from cpt_deploy.signature import (
    Signature,
    Size,
    factors_of,
)

ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A tensor, several by position, or several by the names of their parameters. The first dimension is the batch."""
DynamicShapes = Mapping[Any, Any] | Sequence[Any] | None
"""Free dimensions beside the batch, as in `torch.export`: `Dim`s by axis, for each input."""

States = Sequence[tuple[str, str]] | None
"""Pairs (input, output) of names: the output of a call is the input of the next."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile`, DataParallel or DistributedDataParallel wraps: it computes the same."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_parameters(model: nn.Module) -> None:
    """Check that all parameters of a network are float32, and they and the statistics of BatchNorms are finite.

    Other buffers may be infinite, as masks of attention are.

    Raises:
        ConversionError: If a parameter has no values or another dtype, or a tensor has such values; names it.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ConversionError(
                f"Expected parameters with values, but {name!r} has none yet",
                hint="load them, or run the network once on an input",
            )
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ConversionError(
                f"Expected parameters in float32, but {name!r} is in {parameter.dtype}",
                hint="prepare(model.float(), …)",
            )
        _check_finite(name, parameter)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            _check_finite(name, buffer)
            if name.endswith("running_var") and bool((buffer < 0).any()):
                raise ConversionError(
                    f"Expected variances of at least 0, but {name!r} has negative values",
                    hint="load a sound checkpoint",
                )


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        found = "NaN" if bool(tensor.isnan().any()) else "infinite values"
        raise ConversionError(
            f"Expected parameters and statistics that are finite, but {name!r} has {found}",
            hint="load a sound checkpoint",
        )


@dataclass(frozen=True, slots=True)
class Example:
    """Inputs of a network.

    Attributes:
        signature: Signature of the inputs, and the pairs of its states; outputs are not known yet.
        parameters: Names of forward's parameters, in the order of the inputs.
        by_name: Whether they are passed by name.
        ranges: Min and max of each integer input: for each position, or for all positions where sizes are free.
        states: The names of the states among the inputs, each with the network's own name of the output.
    """

    signature: Signature
    parameters: tuple[str, ...]
    by_name: bool
    ranges: tuple[tuple[Tensor, Tensor], ...]
    states: tuple[tuple[str, str], ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether all inputs are floating-point numbers."""
        return all(tensor.dtype == "float32" for tensor in self.signature.inputs)

    def call(self, function: Any, inputs: Sequence[Any]) -> Any:
        """Call a network, or a function in its place, with its inputs."""
        return function(**dict(zip(self.parameters, inputs, strict=True))) if self.by_name else function(*inputs)

    def random(
        self, rows: int, factor: float, generator: torch.Generator, sizes: Mapping[str, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Return a random batch: normal values times `factor`, and integers between those of the example.

        Args:
            rows: Size of the batch.
            factor: Factor of the normal values.
            generator: Source of randomness.
            sizes: Sizes of the free dimensions; by default those of the example.
        """
        inputs = []
        given = zip(self.signature.inputs, self.signature.input_shapes(sizes), self.ranges, strict=True)
        for tensor, shape, (least, most) in given:
            dtype = getattr(torch, tensor.dtype)
            if dtype.is_floating_point:
                inputs.append(factor * torch.randn(rows, *shape, generator=generator, dtype=dtype))
            else:
                share = torch.rand(rows, *shape, generator=generator, dtype=torch.float64)
                inputs.append((least + (share * (most - least + 1)).floor()).to(dtype))
        return tuple(inputs)

    def described(self) -> str:
        """Describe the inputs in words."""
        shapes = [f"(N, {', '.join(map(str, tensor.shape))})" for tensor in self.signature.inputs]
        if len(shapes) == 1:
            return f"an input of shape {shapes[0]}"
        named = (f"{name} {shape}" for name, shape in zip(self.parameters, shapes, strict=True))
        return f"inputs of shapes {', '.join(named)}"


def zeros_of(
    signature: Signature, rows: int, sizes: Mapping[str, int] | None = None, *, device: torch.device | None = None
) -> tuple[Tensor, ...]:
    """Return a batch of zeros for each input; `sizes` of the free dimensions are by default those of the example."""
    return tuple(
        torch.zeros(rows, *shape, dtype=getattr(torch, tensor.dtype), device=device)
        for tensor, shape in zip(signature.inputs, signature.input_shapes(sizes), strict=True)
    )


def dims_of(signature: Signature, *, together: bool = False) -> tuple[dict[int, Any], ...]:
    """Return the free dimensions of each input, the batch included, as `torch.export` takes them.

    Args:
        signature: The signature.
        together: Whether bounds are such that all sizes may be at their maximum, see `Signature.most`.
    """
    batch = Dim("batch", min=1)
    dims = {
        name: Dim(name, min=free.least, max=signature.most(name) if together else free.most)
        for name, free in signature.free.items()
    }
    return tuple(
        {0: batch} | {axis: _dim(size, dims) for axis, size in enumerate(tensor.shape, 1) if not isinstance(size, int)}
        for tensor in signature.inputs
    )


def _dim(size: Size, dims: Mapping[str, Any]) -> Any:
    factors, offset = factors_of(size)
    ((name, factor),) = factors.items()  # a size of an input follows from one dimension
    dim = dims[name] if factor == 1 else factor * dims[name]
    return dim + offset if offset else dim
