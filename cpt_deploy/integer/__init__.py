"""Integer models made from trained CPT models, and their exact execution."""

from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.lowering.freeze import freeze
from cpt_deploy.integer.operations import QuantizedTensor
from cpt_deploy.integer.stored import graph_from_bundle

__all__ = ["IntegerExecutor", "IntegerGraph", "QuantizedTensor", "freeze", "graph_from_bundle"]
