"""Inspect an ONNX file without data: its signature, what runs on integers, and what to change."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnx import helper

from cpt_deploy.bundle.runtime.cpu import read_cpu
from cpt_deploy.bundle.runtime.operators import float_operators
from cpt_deploy.errors import UsageError
from cpt_deploy.onnx_graph.onnx_parts import inner_nodes
from cpt_deploy.onnx_graph.reading.loading import opset_of
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.validation.onnx_files.around import Around
from cpt_deploy.validation.onnx_files.files import OnnxFile, example_inputs
from cpt_deploy.validation.onnx_files.findings import Finding, find
from cpt_deploy.validation.onnx_files.layers import Layer, integer_share, layers_of, multiplies_integers
from cpt_deploy.validation.onnx_files.replay import Replay

#: Parts of the names of operators that quantize, or compute on integers.
_QUANTIZED = ("Quantize", "QLinear", "Integer", "QGemm", "QAttention", "NBits")


@dataclass(frozen=True)
class TensorFacts:
    """An input, an output or an integer tensor.

    Args:
        name: Its name.
        dtype: Its type as NumPy names it, or what it is if it is no tensor.
        shape: Its sizes; names where they are free, "?" where these have no name; `None` if their number is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Inspection:
    """What is in an ONNX file, and what onnxruntime makes of it on this processor.

    Args:
        file: Name of the file.
        size_bytes: Its size with external data.
        opset: Version of ONNX's operators.
        domains: Versions of other operators by domain.
        inputs: Its inputs.
        outputs: Its outputs.
        operators: Number of operators of the file by type.
        executed: Number of operators of onnxruntime's optimized graph by type.
        inside: Number of operators inside of subgraphs of that graph by type; no layers are looked for there.
        in_float: Operators of that graph that compute in float, by type.
        integers: Integer tensors between the operators of the optimized graph; `None` if unknown.
        layers: Layers that multiply.
        integer_share: Share of multiply-accumulates on integers; `None` if unknown or there are none.
        findings: What to change.
        note: Why something is unknown; empty if nothing is.
    """

    file: str
    size_bytes: int
    opset: int
    domains: Mapping[str, int]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    operators: Mapping[str, int]
    executed: Mapping[str, int]
    inside: Mapping[str, int]
    in_float: Mapping[str, int]
    integers: tuple[TensorFacts, ...] | None
    layers: tuple[Layer, ...]
    integer_share: float | None
    findings: tuple[Finding, ...]
    note: str = ""

    @property
    def quantized(self) -> bool:
        """Whether anything in it is quantized."""
        kinds = (*self.operators, *self.executed, *self.inside)
        return any(word in kind for kind in kinds for word in _QUANTIZED) or any(
            layer.integers for layer in self.layers
        )

    @property
    def portable(self) -> bool | None:
        """Whether no sum can saturate on any x86 processor; `None` if unknown."""
        if any(layer.saturates for layer in self.layers):
            return False
        unknown = any(layer.saturates is None for layer in self.layers) or any(map(multiplies_integers, self.inside))
        return None if unknown else True

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON types."""
        return {**asdict(self), "portable": self.portable}


def inspect_file(file: OnnxFile) -> Inspection:
    """Inspect a file; onnxruntime runs it once on random inputs, for the sizes of its tensors.

    Raises:
        BundleError: If onnxruntime cannot optimize it.
    """
    network, optimized = file.graph, file.optimized(exact_sums=False)
    note, shapes, kinds = "", {}, {}
    try:
        traced = Replay(optimized).run(example := example_inputs(file, rows=1))
        shapes = {name: array.shape for name, array in (traced | example).items()}
        kinds = {name: array.dtype for name, array in (traced | example).items()}
    except UsageError as error:
        note = error.message
    inner = [(node.op_type, each.op_type) for node in optimized.nodes for each in inner_nodes(node)]
    inside = Counter(kind for _, kind in inner)
    if inside:
        outer = Counter(kind for kind, _ in inner)
        bodies = ", ".join(f"{count} operators inside of {kind}" for kind, count in outer.items())
        note = "; ".join([*([note] if note else []), f"{bodies} were not looked at"])
    layers = layers_of(optimized, shapes, kinds)
    computed = [
        TensorFacts(name, str(kinds[name]), tuple(shapes[name]))
        for node in optimized.nodes
        for name in node.output
        if name in kinds and kinds[name].itemsize <= 2 and kinds[name].kind in "iu"
    ]
    opset = opset_of(file.model)
    return Inspection(
        file=file.path.name,
        size_bytes=file.size_bytes,
        opset=opset,
        domains={
            node.domain: network.opsets.get(node.domain, 1)
            for node in network.nodes
            if node.domain not in ("", "ai.onnx")
        },
        inputs=tuple(map(_facts, network.inputs)),
        outputs=tuple(map(_facts, network.outputs)),
        operators=_counted(network),
        executed=_counted(optimized),
        inside=dict(inside.most_common()),
        in_float=float_operators(file.content),
        integers=tuple(computed) if kinds else None,
        layers=layers,
        integer_share=integer_share(layers),
        findings=find(Around(network, optimized), layers, opset, saturates=read_cpu().saturates is True),
        note=note,
    )


def _counted(network: OnnxNetwork) -> dict[str, int]:
    return dict(Counter(node.op_type for node in network.nodes).most_common())


def _facts(value: Any) -> TensorFacts:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorFacts(value.name, str(kind).removesuffix("_type"), ())
    tensor = value.type.tensor_type
    sizes = None
    if tensor.HasField("shape"):
        sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    name = "string" if tensor.elem_type == 8 else str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorFacts(value.name, name, sizes)
