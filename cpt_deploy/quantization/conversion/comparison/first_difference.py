"""Find the first operation of a network whose result does not occur in the graph that was made from it.

Values are compared by a fingerprint: their number, their maximum magnitude, and two means. Operations are the calls of
torch's functions that the network makes, so operations that a graph decomposes (attention, SiLU) are compared as a
whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from cpt_deploy.quantization.graph.shapes import describe, results_of

#: Relative difference up to which fingerprints count as equal, since operators may be composed differently.
_TOLERANCE = 1e-5


class _Fingerprint(NamedTuple):
    """The number of values, their maximum magnitude, and two weighted means relative to it."""

    number: int
    size: float
    means: tuple[float, float]

    def is_like(self, other: "_Fingerprint") -> bool:
        if self.number != other.number or abs(self.size - other.size) > _TOLERANCE * max(self.size, other.size):
            return False
        return all(abs(a - b) <= _TOLERANCE for a, b in zip(self.means, other.means, strict=True))


def _fingerprint(value: Tensor) -> _Fingerprint:
    values = value.detach().flatten().double().nan_to_num()
    size = float(values.abs().max()) if values.numel() else 0.0
    place = torch.arange(values.numel(), device=values.device, dtype=torch.float64)
    unit = values / (size or 1.0)
    return _Fingerprint(
        values.numel(), size, (float((unit * torch.cos(place)).mean()), float((unit * torch.sin(3 * place + 1)).mean()))
    )


def _fingerprints(values: Any) -> list[_Fingerprint]:
    return [_fingerprint(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class _Call(NamedTuple):
    """A call that a network makes: its name, its module's path, and fingerprints of its inputs and results."""

    name: str
    module: str
    reads: list[_Fingerprint]
    makes: list[_Fingerprint]

    @property
    def in_words(self) -> str:
        return f"operation {self.name!r} in " + (
            f"module {self.module!r}" if self.module else "the model's own forward"
        )


class _Calls(TorchFunctionMode):
    """Records the calls of torch's functions, in order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {module: name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = _fingerprints((args, kwargs))  # before: it may overwrite them
        result = func(*args, **(kwargs or {}))
        makes = _fingerprints(result)
        if reads and makes:
            name = str(getattr(func, "__name__", func))
            self.calls.append(_Call(name, self.stack[-1] if self.stack else "", reads, makes))
        return result

    def _leave(self, module: nn.Module, given: Any, result: Any) -> None:
        self.stack.pop()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls that are made inside the context, with the module that makes them."""
        enter = register_module_forward_pre_hook(
            lambda module, given: self.stack.append(self.paths.get(module, self.stack[-1] if self.stack else ""))
        )
        leave = register_module_forward_hook(self._leave)
        try:
            with self:
                yield
        finally:
            enter.remove()
            leave.remove()


class _Values(fx.Interpreter):
    """Runs a graph and records the fingerprint of each node's tensor."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.prints: dict[fx.Node, _Fingerprint] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point() and n.op != "output":
            self.prints[n] = _fingerprint(result)
        return result


def first_difference(
    model: nn.Module,
    call: Callable[[list[Tensor]], Any],
    network: fx.GraphModule,
    batch: Sequence[Tensor],
    replay: Callable[[nn.Module], None],
) -> str:
    """Describe the first operation of a network whose result does not occur in a graph.

    Args:
        model: The network.
        call: Calls it with its inputs.
        network: The graph.
        batch: Inputs on which their results differ.
        replay: Runs either of them in the state and mode in which their results differ.
    """
    calls, values = _Calls(model), _Values(network)
    with torch.no_grad():
        replay(model)
        with calls.recording():
            call([x.clone() for x in batch])
        replay(network)
        values.run(*(x.clone() for x in batch))
    known = list(values.prints.values())
    for made in calls.calls:
        if _any_like(made.reads, known) and not _any_like(made.makes, known):
            return made.in_words
    return describe(results_of(network.graph)[0], network)


def _any_like(some: list[_Fingerprint], known: list[_Fingerprint]) -> bool:
    return any(value.is_like(other) for value in some for other in known)
