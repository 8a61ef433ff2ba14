"""Write sparse constants of an ONNX model as dense ones: as onnxruntime has them in memory anyway."""

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cpt_deploy.onnx_graph.onnx_parts import subgraphs


def make_dense(graph: onnx.GraphProto) -> None:
    """Turn sparse initializers of a graph, and sparse values of its `Constant`s, into dense ones; also in subgraphs."""
    graph.initializer.extend(map(_dense, graph.sparse_initializer))
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                attribute.CopyFrom(helper.make_attribute("value", _dense(attribute.sparse_tensor)))
            for body in subgraphs(attribute):
                make_dense(body)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return a sparse tensor, whose indices are flat, (NNZ,), or one of each dimension, (NNZ, rank), as a dense one."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(math.prod(sparse.dims), values.dtype)
    flat = np.ravel_multi_index(tuple(places.T), tuple(sparse.dims)) if places.ndim > 1 else places
    array[flat] = values
    return numpy_helper.from_array(array.reshape(sparse.dims), sparse.values.name)
