"""`torch.fx` on networks as they are called: what their instances carry beside their classes is traced as well."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize


def is_stochastic_depth(module: nn.Module | None) -> bool:
    """Return whether a module drops whole branches in training and does nothing in evaluation.

    torchvision, timm and transformers each have a class of their own for it.
    """
    name = type(module).__name__
    return name == "StochasticDepth" or name.endswith("DropPath")


class Tracer(fx.Tracer):
    """Keeps every `torch.nn` module whole, and the few others that are one operation; hooks are traced around them."""

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

    def trace_called(self, root: nn.Module) -> fx.Graph:
        """Trace a network as it is when it is called: with hooks on it, and a forward that was put on the instance."""
        if not (root._forward_hooks or root._forward_pre_hooks or "forward" in root.__dict__):
            return self.trace(root)
        kind, own = type(root), root.__dict__.get("forward")

        def forward(self: nn.Module, x: Any) -> Any:
            return self._call_impl(x)  # type: ignore[no-untyped-call]

        root.forward = root.forward
        root.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
        try:
            return self.trace(root)
        finally:
            root.__class__ = kind
            del root.forward
            if own is not None:
                root.forward = own


class _StandIn:
    """A forward that stands for a module's own while its hooks are traced."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)
