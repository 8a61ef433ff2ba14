"""Trace with sizes as numbers, for networks that compute with them in Python.

`math.ceil(x.shape[2] / stride)` and `max(padding, 0)`, as in the "same" padding of TensorFlow, need numbers, which
traced tensors do not have. This tracer supplies them: all sizes that the input determines, except for the batch and
other free dimensions. They are computed on demand, on tensors that have shapes and no values.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from cpt_deploy.quantization.conversion.capture.tracer import Tracer
from cpt_deploy.quantization.graph.results import Structure
from cpt_deploy.quantization.graph.signature import Example, zeros_of


class SizeTracer(Tracer):
    """A tracer whose tensors have sizes as numbers.

    Args:
        example: Inputs of the network.
        structure: Structure of its outputs.
    """

    def __init__(self, example: Example, structure: Structure) -> None:
        super().__init__(example, structure)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        numbers = (0, 1) if example.signature.free else (0,)
        self._inputs = [
            dict(zip(example.parameters, zeros_of(example.signature, 2, example.signature.sizes(number)), strict=True))
            for number in numbers
        ]
        self._examples: dict[tuple[fx.Node, int], Any] = {}
        self._evaluates = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy of a value while tracing."""
        return _SizedProxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace a call of a module, or run it while sizes are computed."""
        return forward(*args, **kwargs) if self._evaluates else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module: a parameter is traced, except while sizes are computed."""
        return attr_val if self._evaluates else super().getattr(attr, attr_val, parameter_proxy_cache)

    def sizes(self, proxy: fx.Proxy) -> tuple[Any, ...] | None:
        """Return the sizes of a tensor, those of free dimensions as traced numbers; None for other values."""
        self._evaluates = True
        try:
            with self._mode, torch.no_grad():
                examples = [self._example(proxy.node, number) for number in range(len(self._inputs))]
        finally:
            self._evaluates = False
        if not isinstance(examples[0], Tensor):
            return None
        known = [tuple(int(size) for size in example.shape) for example in examples]
        if not known[0] or not self._is_of_input(proxy.node):
            return known[0]
        return tuple(
            self.create_proxy("call_method", "size", (proxy, axis), {}) if not axis or len(set(sizes)) > 1 else sizes[0]
            for axis, sizes in enumerate(zip(*known, strict=True))
        )

    def _is_of_input(self, node: fx.Node) -> bool:
        return node.op == "placeholder" or any(self._is_of_input(source) for source in node.all_input_nodes)

    def _example(self, node: fx.Node, number: int) -> Any:
        if (node, number) not in self._examples:
            self._examples[node, number] = self._computed(node, number)
        return self._examples[node, number]

    def _computed(self, node: fx.Node, number: int) -> Any:
        if node.op == "placeholder":
            return self._mode.from_tensor(self._inputs[number][str(node.target)])
        if node.op == "get_attr":
            value: Any = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        args, kwargs = (
            tree_map(lambda value: self._example(value, number) if isinstance(value, fx.Node) else value, given)
            for given in (node.args, node.kwargs)
        )
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        function: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
        return function(*(args[1:] if node.op == "call_method" else args), **kwargs)


class _SizedProxy(fx.Proxy):
    tracer: SizeTracer

    @property
    def shape(self) -> Any:
        sizes = self.tracer.sizes(self)
        return fx.proxy.Attribute(self, "shape") if sizes is None else sizes

    def size(self, dim: int | None = None) -> Any:
        sizes = self.tracer.sizes(self)
        if sizes is None:
            return self.tracer.create_proxy("call_method", "size", (self,) if dim is None else (self, dim), {})
        return sizes if dim is None else sizes[dim]

    def dim(self) -> Any:
        sizes = self.tracer.sizes(self)
        return self.tracer.create_proxy("call_method", "dim", (self,), {}) if sizes is None else len(sizes)
