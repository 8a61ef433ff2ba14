"""Adapters, one for each kind of model: requests to tensors, tensors to answers, and routes beyond inference."""

from collections.abc import Callable, Mapping
from typing import Any

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError
from cpt_serving.adapters.adapter import Adapter, Generates, ModelKind, Predicts
from cpt_serving.adapters.images import ImageClassification
from cpt_serving.adapters.text import TextGeneration
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.settings import ServeSettings

__all__ = ["ADAPTERS", "Adapter", "Generates", "ModelKind", "Predicts", "adapter_of"]

ADAPTERS: Mapping[str, Callable[[Any, ServeSettings, MemoryBudget], Adapter]] = {
    "image-classification": ImageClassification,
    "text-generation": TextGeneration,
}
"""Adapters by task: the one place that knows all kinds of models."""


def adapter_of(bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> Adapter:
    """Create the adapter of an opened bundle.

    Raises:
        BundleError: If there is none for its task.
    """
    if bundle.task not in ADAPTERS:
        raise BundleError(f"Expected a model for {' or '.join(ADAPTERS)}, but {bundle.path} is for {bundle.task}")
    return ADAPTERS[bundle.task](bundle, settings, memory)
