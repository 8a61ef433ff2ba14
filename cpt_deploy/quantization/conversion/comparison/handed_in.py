"""The original network with its hooks and replaced forwards, which are part of its computation."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.conversion.capture.composites import taken_apart
from cpt_deploy.quantization.conversion.capture.parametrized import as_parametrizations
from cpt_deploy.quantization.graph.signature import check_parameters, unwrapped
from cpt_deploy.quantization.model import QuantizedModel

_FORWARD_HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
_BACKWARD_HOOKS = {"_backward_pre_hooks": "backward pre-hook", "_backward_hooks": "backward hook"}

HookKey = tuple[str, str, int]
"""Module path, attribute that holds the hook, and its number there."""


@dataclass(frozen=True)
class HandedIn:
    """A network to convert, with the hooks and replaced forwards of its instances.

    Attributes:
        network: The network as it was given, without what wraps it.
        model: The network itself if forwards of instances were replaced, since these may call what they replaced;
            otherwise a copy.
        replaced: Paths of modules whose `forward` was replaced on the instance.
        hooks: All of its hooks.
        acting: The hooks that change the computation; known after `watched`.
    """

    network: nn.Module
    model: nn.Module
    replaced: tuple[str, ...]
    hooks: tuple[HookKey, ...]
    acting: set[HookKey]

    @classmethod
    def of(cls, network: nn.Module) -> "HandedIn":
        """Collect the hooks and replaced forwards of a network, which is not changed.

        Raises:
            ConversionError: If it is prepared already, or has parameters without values, of another dtype or NaN.
        """
        network = unwrapped(network)
        if any(isinstance(module, QuantizedModel) for module in network.modules()):
            raise ConversionError(
                "Expected a float model, but this one is prepared already", hint="prepare the float model"
            )
        check_parameters(network)
        model = as_parametrizations(network)
        replaced = tuple(name for name, module in model.named_modules() if "forward" in module.__dict__)
        hooks = tuple(
            (name, kind, number)
            for name, module in model.named_modules()
            for kind in (*_FORWARD_HOOKS, *_BACKWARD_HOOKS)
            for number in getattr(module, kind)
        )
        return cls(network, model if replaced else copy.deepcopy(model), replaced, hooks, set())

    @property
    def device(self) -> torch.device | None:
        """The device of the network's parameters; `None` without any."""
        return next((parameter.device for parameter in self.network.parameters()), None)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Restore the network and all random number generators after the context."""
        with untouched(self.network), _same_randomness(self.network):
            yield

    def dropped(self) -> tuple[str, ...]:
        """Describe the hooks that only observe, and so are not converted."""
        return tuple(describe_hook(key) for key in self.hooks if key not in self.acting)

    def peculiar(self) -> tuple[str, ...]:
        """Describe the replaced forwards and acting hooks, which may change the computation of a module's class."""
        replaced = [f"the replaced forward of {_module_name(name)}" for name in self.replaced]
        return (*replaced, *(describe_hook(key) for key in self.hooks if key in self.acting))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Find the forward hooks that change the computation while the network runs inside the context."""
        kept: list[tuple[dict[int, Any], int, Any]] = []
        for key in self.hooks:
            name, kind, number = key
            if kind in _FORWARD_HOOKS:
                module = self.model.get_submodule(name)
                hooks = getattr(module, kind)
                kept.append((hooks, number, hooks[number]))
                hooks[number] = _watch(hooks[number], module, partial(self.acting.add, key))
        try:
            yield
        finally:
            for hooks, number, hook in kept:
                hooks[number] = hook

    def to_convert(self) -> tuple[nn.Module, nn.Module]:
        """Return the network to trace, with its acting hooks, and a copy without any, to hold the result.

        Both are the same object if no hook acts. The network to trace may be the original one: leave it `untouched`.
        """
        source = self.model if self.replaced else taken_apart(self.model)
        if not self.replaced and not self.acting:
            return _plain(source), source
        plain = copy.deepcopy(source)
        for name, kind, number in set(self.hooks) - self.acting:
            getattr(source.get_submodule(name), kind).pop(number, None)
        return source, _plain(plain)


def describe_hook(key: HookKey) -> str:
    """Describe a hook and its place."""
    return f"the {(_FORWARD_HOOKS | _BACKWARD_HOOKS)[key[1]]} on {_module_name(key[0])}"


def _module_name(path: str) -> str:
    return f"module {path!r}" if path else "the network"


def _plain(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.__dict__.pop("forward", None)
        for kind in (*_FORWARD_HOOKS, *_BACKWARD_HOOKS):
            getattr(module, kind).clear()
    return model


def _watch(hook: Callable[..., Any], module: nn.Module, acts: Callable[[], None]) -> Callable[..., Any]:
    """Wrap a hook to report when it changed something: a result, an argument in place, or its module."""

    def watched(*given: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves(given[1:]) if isinstance(leaf, Tensor)]
        versions = [tensor._version for tensor in tensors]
        before = _attributes(module)
        result = hook(*given)
        after = _attributes(module)
        same = before.keys() == after.keys() and all(after[name] is value for name, value in before.items())
        if not same or versions != [tensor._version for tensor in tensors] or not _is_given(result, given[-1]):
            acts()
        return result

    return watched


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {**module.__dict__, **module._parameters, **module._buffers, **module._modules}


def _is_given(result: Any, given: Any) -> bool:
    """Return whether a hook returned nothing, or only its arguments."""
    if result is None:
        return True
    ours, theirs = tree_leaves(result), tree_leaves(given)
    return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))


# --- restoring state -----------------------------------------------------------------------------------------------


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore a network after the context: attributes, hooks, modes and the values of buffers.

    Containers that are attributes are restored in place, one level deep, since other objects may refer to them.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    held = [value for known in attributes for value in known.values() if isinstance(value, dict | list | set)]
    contents = [copy.copy(container) for container in held]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, known in zip(modules, attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(known)
        for container, content in zip(held, contents, strict=True):
            _refill(container, content)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


@contextmanager
def _same_randomness(model: nn.Module) -> Iterator[None]:
    """Restore all random number generators: torch's on the CPU and on the model's device, NumPy's and Python's."""
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    python, arrays = random.getstate(), np.random.get_state()  # the user's network may use it
    try:
        with torch.random.fork_rng(devices=sorted(index or 0 for index in devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def seed_all(seed: int) -> None:
    """Seed all random number generators that a network may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
