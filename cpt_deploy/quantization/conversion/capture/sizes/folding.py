"""Find the shapes of tensors and the sizes as numbers in a traced graph, without computing values."""

import operator
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from cpt_deploy.quantization.graph.signature import zeros_of
from cpt_deploy.signature import Signature

#: Two batch sizes: a value that is the same for both, and at other free sizes, depends on no free dimension.
_BATCHES = (2, 3)

#: Operators that return a tensor, whatever their sizes; additions do unless an operand is a number.
_OF_TENSORS = {torch.cat, torch.flatten, torch.mean, "flatten", "mean"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Seen:
    """Values and shapes of nodes for a batch of two.

    Args:
        values: By node: the shape of a floating-point tensor (`torch.Size`) in a 1-tuple, or the value itself.
    """

    values: dict[fx.Node, Any]

    def is_tensor(self, node: fx.Node) -> bool:
        """Return whether a node yields a floating-point tensor."""
        return isinstance(self.values.get(node), _Shape)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's tensor, the batch dimension included."""
        shape: tuple[int, ...] = self.values[node].sizes
        return shape


@dataclass(frozen=True, slots=True)
class _Shape:
    sizes: tuple[int, ...]


class _Observer(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.seen[n] = _Shape(tuple(result.shape)) if result.is_floating_point() else None
        else:
            self.seen[n] = result
        return result


def fold_sizes(traced: fx.GraphModule, signature: Signature, lifted: Container[object]) -> Seen:
    """Replace sizes that depend on no free dimension by numbers, and return the values and shapes of all nodes.

    So `avg_pool2d(x, x.shape[2:])` gets a window of known size. Nothing is computed: tensors have shapes only.

    Args:
        traced: A graph in evaluation mode; nodes that are no longer read are left in it.
        signature: Its inputs.
        lifted: Functions that are replaced by modules without looking at shapes.

    Returns:
        Nothing seen where all nodes are tensors and nobody asks for shapes: fake tensors import torch's compiler, which
        takes nearly as long as importing torch.
    """
    if all(_is_of_tensors(node, lifted) for node in traced.graph.nodes):
        return Seen({})
    first, second = (_observed(traced, signature, rows, number) for number, rows in enumerate(_BATCHES))
    for node in traced.graph.nodes:
        if node.op in ("call_function", "call_method") and _is_size(first[node]) and first[node] == second[node]:
            for user in list(node.users):
                _replace(user, node, _plain(first[node]))
    return Seen(first)


def _is_of_tensors(node: fx.Node, lifted: Container[object]) -> bool:
    """Return whether a node is a tensor if its operands are, and no constant is in its arithmetic."""
    if node.op not in ("call_function", "call_method", "get_attr"):
        return True
    if node.target in _ADDITIONS:
        return all(isinstance(operand, fx.Node) for operand in node.args) and not node.kwargs
    return node.op != "get_attr" and (node.target in lifted or node.target in _OF_TENSORS)


def _replace(user: fx.Node, node: fx.Node, value: Any) -> None:
    def known(source: fx.Node) -> Any:
        return value if source is node else source

    if user.op != "output":
        user.args, user.kwargs = fx.node.map_arg(user.args, known), fx.node.map_arg(user.kwargs, known)


def _plain(value: Any) -> Any:
    """Return a `torch.Size` as a tuple."""
    return tuple(_plain(part) for part in value) if isinstance(value, tuple | list) else value


def _observed(traced: fx.GraphModule, signature: Signature, rows: int, number: int) -> dict[fx.Node, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = next((parameter.device for parameter in traced.parameters()), torch.device("cpu"))
    observer = _Observer(traced)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        observer.run(*map(mode.from_tensor, zeros_of(signature, rows, signature.sizes(number), device=device)))
    return observer.seen


def _is_size(value: Any) -> bool:
    """Return whether a value is a number, or a tuple or list of numbers."""
    if isinstance(value, tuple | list):
        return bool(value) and all(_is_size(part) for part in value)
    return isinstance(value, int | float)
