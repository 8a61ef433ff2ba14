"""Integer models made from trained CPT models, and their exact execution. Reading a graph imports no PyTorch."""

import importlib
from typing import TYPE_CHECKING

from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.stored import graph_from_bundle
from cpt_deploy.integer.tensors import QuantizedTensor

if TYPE_CHECKING:
    from cpt_deploy.integer.executor import IntegerExecutor
    from cpt_deploy.integer.lowering.freeze import freeze

__all__ = ["IntegerExecutor", "IntegerGraph", "QuantizedTensor", "freeze", "graph_from_bundle"]

_WITH_TORCH = {"IntegerExecutor": "cpt_deploy.integer.executor", "freeze": "cpt_deploy.integer.lowering.freeze"}


def __getattr__(name: str) -> object:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)
