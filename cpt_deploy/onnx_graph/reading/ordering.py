"""The order of operators: onnxruntime takes any, while everything here expects one in which they can run."""

from graphlib import CycleError, TopologicalSorter

import onnx

from cpt_deploy.onnx_graph.onnx_parts import read_names, subgraphs


def in_order(graph: onnx.GraphProto) -> None:
    """Sort the operators of a graph, and of the graphs inside of them, so that each comes after what it reads.

    An order that is one already stays, and so does a circle, which onnxruntime refuses.
    """
    for node in graph.node:
        for attribute in node.attribute:
            for body in subgraphs(attribute):
                in_order(body)
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    sources = [{made_by[name] for name in read_names(node) if name in made_by} for node in graph.node]
    if all(max(before, default=-1) < i for i, before in enumerate(sources)):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(sources))).static_order())
    except CycleError:
        return
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)
