"""`torch.fx` on networks as they are called: what their instances carry beside their classes is traced as well."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from cpt_deploy.quantization.graph.results import Structure
from cpt_deploy.quantization.graph.signature import Example


def is_stochastic_depth(module: nn.Module | None) -> bool:
    """Return whether a module drops whole branches in training and does nothing in evaluation.

    torchvision, timm and transformers each have a class of their own for it.
    """
    name = type(module).__name__
    return name == "StochasticDepth" or name.endswith("DropPath")


class Tracer(fx.Tracer):
    """Keeps every `torch.nn` module whole, and the few others that are one operation; hooks are traced around them.

    Args:
        example: What the network takes.
        structure: What it returns.
    """

    def __init__(self, example: Example, structure: Structure) -> None:
        super().__init__()
        self.example, self.structure = example, structure

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a network; where it is unpickled, torch traces it anew by its own tracer."""
        graph = super().trace(root, concrete_args)
        graph._tracer_cls = fx.Tracer
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operation: by its class, if the instance computes what its class says."""
        if "forward" in m.__dict__ and not isinstance(m.forward, _StandIn):
            return False
        if is_stochastic_depth(m):
            return True
        # a parametrized module of the user's is of a class that torch made
        if not parametrize.type_before_parametrizations(m).__module__.startswith("torch."):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a call of a module."""
        hooks = m._forward_hooks or m._forward_pre_hooks
        if not hooks or not self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        call = super().call_module
        m.forward = _StandIn(lambda *given, **named: call(m, forward, given, named))
        try:
            return forward(*args, **kwargs)  # what a module's call does: its hooks around its forward
        finally:
            del m.forward

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return what is traced, and its arguments: the network as it is when it is called, on its input tensors.

        So hooks on it and a forward that was put on the instance are traced as well; its results are listed.
        """
        root: Any = self.root
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in self.example.parameters]

        def called(*inputs: fx.Proxy) -> Any:
            results = self.structure.tensors(self.example.call(root._call_impl, inputs))
            return results[0] if len(results) == 1 else tuple(results)

        return called, inputs


class _StandIn:
    """A forward that stands for a module's own while its hooks are traced."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)
