"""Adapters: requests to tensors, tensors to answers. A task may name one of its own; the others share one."""

from importlib.metadata import EntryPoint
from typing import Any

from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import BundleError
from cpt_deploy.recipe.tasks import tasks
from cpt_serving.adapters.adapter import Adapter
from cpt_serving.adapters.onnx_files import FileAdapter
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.settings import ServeSettings

__all__ = ["Adapter", "adapter_of"]


def adapter_of(bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> Adapter:
    """Return the adapter of a bundle: of the class that its task names, or of `Adapter` if the task names none.

    Raises:
        BundleError: If the task is installed, but cannot be imported.
    """
    if bundle.bare or not bundle.signature.joins_rows:
        return FileAdapter(bundle, settings, memory)
    try:
        path = getattr(tasks.get(bundle.task), "adapter", None) if bundle.task in tasks else None
        made: Any = Adapter if path is None else EntryPoint("", path, "").load()
    except ImportError as error:
        raise BundleError(f"Expected the task {bundle.task} of {bundle.path}, but got: {error}") from error
    adapter: Adapter = made(bundle, settings, memory)
    return adapter
