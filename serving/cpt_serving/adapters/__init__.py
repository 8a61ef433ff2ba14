"""Adapters, one for each kind of model: requests to tensors, tensors to answers, and routes beyond inference."""

from collections.abc import Callable, Mapping
from typing import Any

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.language import LanguageBundle
from cpt_deploy.bundle.opened import OpenedBundle
from cpt_serving.adapters.adapter import Adapter, Generates, ModelKind, Predicts
from cpt_serving.adapters.images import ImageClassification
from cpt_serving.adapters.text import TextGeneration
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.settings import ServeSettings

__all__ = ["ADAPTERS", "Adapter", "Generates", "ModelKind", "Predicts", "adapter_of"]

ADAPTERS: Mapping[type[OpenedBundle], Callable[[Any, ServeSettings, MemoryBudget], Adapter]] = {
    Bundle: ImageClassification,
    LanguageBundle: TextGeneration,
}
"""Adapters by the type of the opened bundle: the one place that knows all kinds of models."""


def adapter_of(bundle: OpenedBundle, settings: ServeSettings, memory: MemoryBudget) -> Adapter:
    """Create the adapter of an opened bundle."""
    return ADAPTERS[type(bundle)](bundle, settings, memory)
