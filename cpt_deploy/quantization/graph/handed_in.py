"""A network as its owner hands it in: hooks and forwards of single instances belong to what it computes."""

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

from cpt_deploy.quantization.graph.capture.composites import taken_apart

_FORWARD_HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
_BACKWARD_HOOKS = {"_backward_pre_hooks": "backward pre-hook", "_backward_hooks": "backward hook"}

HookKey = tuple[str, str, int]
"""Module path, attribute that holds the hook, and its number there."""


@dataclass(frozen=True)
class HandedIn:
    """A network to convert, and what there is about it beside its class.

    Attributes:
        model: The network itself if forwards of instances were replaced, since these may call what they replaced;
            otherwise a copy.
        replaced: Paths of modules whose `forward` was replaced on the instance.
        hooks: The hooks that there are.
        acting: Those that change what is computed; known after `watched`.
    """

    model: nn.Module
    replaced: tuple[str, ...]
    hooks: tuple[HookKey, ...]
    acting: set[HookKey]

    @classmethod
    def of(cls, model: nn.Module) -> "HandedIn":
        """Look at a network."""
        replaced = tuple(name for name, module in model.named_modules() if "forward" in module.__dict__)
        hooks = tuple(
            (name, kind, number)
            for name, module in model.named_modules()
            for kind in (*_FORWARD_HOOKS, *_BACKWARD_HOOKS)
            for number in getattr(module, kind)
        )
        return cls(model if replaced else copy.deepcopy(model), replaced, hooks, set())

    def dropped(self) -> tuple[str, ...]:
        """Return in words the hooks that only look on, and so are no part of what is converted."""
        return tuple(describe_hook(key) for key in self.hooks if key not in self.acting)

    def peculiar(self) -> tuple[str, ...]:
        """Return in words what may change what a module's class computes."""
        replaced = [f"the replaced forward of {_module_name(name)}" for name in self.replaced]
        return (*replaced, *(describe_hook(key) for key in self.hooks if key in self.acting))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Find out which forward hooks act, while the network runs."""
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
        """Return what is traced, with all that acts, and a copy that is only what its classes say, to hold the result.

        Both are one where nothing acts. What is traced may be the network that was handed in: leave it `untouched`.
        """
        if not self.replaced and not self.acting:
            plain = _plain(taken_apart(self.model))
            return plain, plain
        if self.replaced:
            source, plain = self.model, _plain(copy.deepcopy(self.model))
        else:
            source, plain = taken_apart(self.model), _plain(taken_apart(self.model))
        for name, kind, number in set(self.hooks) - self.acting:
            getattr(source.get_submodule(name), kind).pop(number, None)
        return source, plain


def describe_hook(key: HookKey) -> str:
    """Return a hook and its place in words."""
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
    """Return a hook that tells when it changed something: a result, an argument in place, or its module."""

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
    """Return whether a hook gave back nothing, or only what it was given."""
    if result is None:
        return True
    ours, theirs = tree_leaves(result), tree_leaves(given)
    return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))


# --- leaving things as they are -------------------------------------------------------------------------------------


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave a network as it was, whatever is done with it: attributes, hooks, modes and the values of buffers.

    Containers that are attributes are restored in place, one level deep, since others may hold them too.
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
def same_randomness(model: nn.Module) -> Iterator[None]:
    """Leave all generators of random numbers as they were: torch's on the CPU and on the model's device, others."""
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    python, arrays = random.getstate(), np.random.get_state()  # the user's network may use it
    try:
        with torch.random.fork_rng(devices=sorted(index or 0 for index in devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def seed_all(seed: int) -> None:
    """Seed what a network may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
