"""A trained CPT model as an integer model, and the exact execution of it."""

from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph, QuantizedTensor
from cpt_deploy.integer.lowering.freeze import freeze
from cpt_deploy.integer.stored import graph_from_bundle

__all__ = ["IntegerExecutor", "IntegerGraph", "QuantizedTensor", "freeze", "graph_from_bundle"]
