"""Shapes of a captured graph's tensors, recorded by running it, and descriptions of its nodes for messages."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from cpt_deploy.quantization.graph.signature import zeros_of
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.signature import Signature


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and records the shape of each floating-point tensor, tuple lengths, and dtypes of other tensors."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("shape", None)
        n.meta.pop("parts", None)
        n.meta.pop("other", None)
        if n.op == "output":
            return result
        if isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
            n.meta["parts"] = len(result)
        if isinstance(result, Tensor) and result.is_floating_point():
            n.meta["shape"] = tuple(result.shape)
        elif isinstance(result, Tensor):
            n.meta["other"] = result.dtype
        return result


def propagate_shapes(traced: fx.GraphModule, signature: Signature) -> None:
    """Run a graph on a batch of two zeros, in evaluation mode, and record shapes in `node.meta["shape"]`.

    With free dimensions beside the batch it also runs on other sizes, and records their shapes in
    `node.meta["other_shape"]`.
    """
    device = next((p.device for p in traced.parameters()), torch.device("cpu"))
    with torch.no_grad(), in_evaluation(traced):
        if signature.free:
            _run_shapes(traced, signature, signature.sizes(1), device)
            for node in traced.graph.nodes:
                node.meta["other_shape"] = node.meta.get("shape")
        _run_shapes(traced, signature, signature.sizes(), device)


def _run_shapes(traced: fx.GraphModule, signature: Signature, sizes: Mapping[str, int], device: torch.device) -> None:
    recorder = _ShapeRecorder(traced)
    recorder.extra_traceback = False
    recorder.run(*zeros_of(signature, 2, sizes, device=device))


def results_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that a graph of `prepare` returns."""
    result: Any = next(iter(graph.find_nodes(op="output"))).args[0]
    return [result] if isinstance(result, fx.Node) else list(result)


def is_tensor(node: fx.Node) -> bool:
    """Return whether a node of a traced graph yields one floating-point tensor."""
    return "shape" in node.meta


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor without the batch dimension."""
    return tuple(int(size) for size in node.meta["shape"][1:])


def seen_shapes(node: fx.Node) -> list[tuple[int, ...]]:
    """Return the shape of a node's tensor, and its shape at other free sizes if recorded; the batch is included."""
    return [node.meta["shape"], node.meta.get("other_shape", node.meta["shape"])]


def sizes_of(node: fx.Node) -> tuple[int | None, ...]:
    """Return the shape of a node's tensor without the batch dimension; None where a size is free."""
    shape, other = seen_shapes(node)
    return tuple(int(size) if size == also else None for size, also in zip(shape[1:], other[1:], strict=True))


def has_free_positions(node: fx.Node) -> bool:
    """Return whether any size after the channels of a node's tensor is free."""
    return None in sizes_of(node)[1:]


def describe(node: fx.Node, traced: fx.GraphModule) -> str:
    """Describe an operation and its place for an error message."""
    if node.op == "placeholder":
        return "the input" if len(node.graph.find_nodes(op="placeholder")) == 1 else f"the input {node.name!r}"
    if "lifted" in node.meta:
        return str(node.meta["lifted"])
    if node.op == "call_module":
        name = type(traced.get_submodule(str(node.target))).__name__.removeprefix("Quantized")
        return f"{name} in module {node.target!r}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    stack = node.meta.get("nn_module_stack") or {}
    place = list(stack.values())[-1][0] if stack else ""
    return f"operation {target!r} in " + (f"module {place!r}" if place else "the model's own forward")
