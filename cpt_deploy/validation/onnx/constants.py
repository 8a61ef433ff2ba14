"""Compare the constants of model.onnx with the bundle's integer graph.

Running a model shows only errors that the data exercises. Here nothing runs: quantized weights, scales, zero points,
biases and bits of the ONNX file are read and compared with quantization.json and model.safetensors, so that a single
edited value is found wherever it is. Needs the `onnx` package, not PyTorch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.operators import require_onnx
from cpt_deploy.errors import BundleError
from cpt_deploy.validation.onnx.constant_graph import ConstantGraph, UnexpectedStructureError, attributes
from cpt_deploy.validation.onnx.step_constants import step_constants

_KINDS = {
    "Convolution": ("Conv",),
    "FullyConnected": ("Gemm",),
    "Add": ("Add",),
    "Multiply": ("Mul",),
    "Concatenate": ("Concat",),
    "GlobalAverage": ("GlobalAveragePool",),
    "MaxPool": ("MaxPool",),
    "Pad": ("Pad",),
    "Reshape": ("Reshape", "Flatten"),
    "Transpose": ("Transpose",),
    "Slice": ("Slice",),
}
_MOVING = frozenset({"MaxPool", "Pad", "Reshape", "Transpose", "Slice"})
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_FULL_RANGES = {False: (0, 255), True: (-128, 127)}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ConstantDifference:
    """A constant of model.onnx that differs from the integer graph.

    Args:
        tensor: The tensor of the graph that depends on it: the result of the layer, or the quantized tensor itself.
        part: Kind of the constant: "weight codes", "scale", "zero point", ...
        values: Number of its values.
        differing: Number of differing values.
        detail: The first difference, as text.
    """

    tensor: str
    part: str
    values: int
    differing: int
    detail: str


@dataclass(frozen=True)
class ConstantsResult:
    """The comparison of the constants of model.onnx with the integer graph.

    Args:
        compared: Number of compared values.
        differences: The differing constants, in the order of the graph.
    """

    compared: int
    differences: tuple[ConstantDifference, ...]


def compare_constants(bundle: Bundle) -> ConstantsResult:
    """Compare the constants of a bundle's model.onnx with its integer graph.

    Raises:
        BundleError: If model.onnx is no ONNX file, or the bundle's graph is incomplete or malformed.
        MissingExtraError: If `onnx` is not installed.
    """
    try:
        graph = bundle.quantization["graph"]
        names = [tensor["name"] for tensor in graph["tensors"]]
        comparison = _Comparison(ConstantGraph.of_file(bundle.onnx_path.read_bytes(), names), bundle.load_tensors())
        comparison.run(graph)
    except (KeyError, TypeError, IndexError) as error:
        raise BundleError(
            f"Expected quantization.json of {bundle.path} to describe the integer graph, but got: {error!r}",
            hint="export the bundle again",
        ) from error
    return ConstantsResult(comparison.compared, tuple(comparison.differences))


class _Comparison:
    def __init__(self, onnx_graph: ConstantGraph, arrays: Mapping[str, Array]) -> None:
        self.onnx = onnx_graph
        self.arrays = arrays
        self.compared = 0
        self.differences: list[ConstantDifference] = []

    def run(self, graph: Mapping[str, Any]) -> None:
        self._products(graph)
        self._float_constants(graph)
        for operation in graph["operations"]:
            if operation["type"] in {"OnnxPart", "Movement"}:
                self._guard(operation["output"], partial(self._operators, operation))
        tensors = {tensor["name"]: tensor for tensor in graph["tensors"]}
        operations = {operation["output"]: operation for operation in graph["operations"]}
        stepped = {operation.get("hidden") for operation in graph["operations"]}
        for name, tensor in tensors.items():
            for check in self._checks(tensor, operations.get(name), tensors) if name not in stepped else ():
                self._guard(name, check)
        for output, made in zip(graph["signature"]["outputs"], graph["outputs"], strict=True):
            found = self.onnx.source(output["name"])
            # results of float operations have names of their own in the file
            known = made in tensors or operations.get(made, {}).get("type") == "FullyConnected"
            if known and found != made:
                detail = f"expected {output['name']} to be read from it, but it is read from {found!r}"
                self.differences.append(ConstantDifference(made, "graph", 1, 1, detail))

    def _guard(self, name: str, check: Callable[[], None]) -> None:
        try:
            check()
        except UnexpectedStructureError as error:
            self.differences.append(ConstantDifference(name, "graph", 1, 1, str(error)))

    def _products(self, graph: Mapping[str, Any]) -> None:
        """Compare layers and embeddings whose results are real values."""
        tensors = {tensor["name"]: tensor for tensor in graph["tensors"]}
        for operation in graph["operations"]:
            if operation["type"] == "FullyConnected" and operation["output"] not in tensors:
                self._guard(operation["output"], partial(self._product, operation, tensors[operation["inputs"][0]]))
            if operation["type"] == "Recurrent":
                hidden = tensors[operation["hidden"]]
                self._guard(hidden["name"], partial(self._steps, operation, hidden))
            if operation["type"] == "Embed":
                self._guard(operation["output"], partial(self._embedding, operation))

    def _product(self, operation: Mapping[str, Any], source: Mapping[str, Any]) -> None:
        name, bias = operation["output"], self.arrays[operation["bias"]["tensor"]]
        node = self.onnx.node(name)
        added = np.zeros(bias.shape, np.float32)
        if node.op_type == "Add":
            node, added = self.onnx.node(node.input[0]), self.onnx.constant(node.input[1])
        if node.op_type not in {"Gemm", "MatMul"} or self.onnx.source(node.input[0]) != source["name"]:
            raise UnexpectedStructureError(f"expected a layer that reads {source['name']!r}, but got {node.op_type}")
        factors = self.arrays[operation["scales"]["tensor"]]
        if node.op_type == "Gemm":
            self._weights(operation, node)
        else:
            stored, scales, zeros = self.onnx.dequantized(node.input[1])
            expected = self.arrays[operation["codes"]["tensor"]] << np.int8(operation["shift"])
            self._compare(name, "weight codes", expected, stored.T)
            self._compare(name, "weight scales", factors, scales)
            self._compare(name, "weight zero points", np.zeros(zeros.shape), zeros)
        if len(node.input) > 2:  # a Gemm has its own bias, and no Add follows
            self._bias(operation, node, source)
            bias = np.zeros_like(bias)
        self._compare(name, "bias", bias.astype(np.float32) * (np.float32(source["scale"]) * factors), added)

    def _steps(self, operation: Mapping[str, Any], hidden: Mapping[str, Any]) -> None:
        for part, expected, found in step_constants(self.onnx, operation, hidden, self.arrays):
            self._compare(hidden["name"], part, expected, found)

    def _embedding(self, operation: Mapping[str, Any]) -> None:
        name, scaled = operation["output"], self.onnx.node(operation["output"])
        rows = self.onnx.node(self.onnx.node(scaled.input[0]).input[0])
        factors = self.onnx.node(scaled.input[1])
        kinds = (scaled.op_type, rows.op_type, factors.op_type)
        if kinds != ("Mul", "Gather", "Gather"):
            raise UnexpectedStructureError(f"expected rows times factors, but got {', '.join(kinds)}")
        expected = self.arrays[operation["codes"]["tensor"]] << np.int8(operation["shift"])
        self._compare(name, "weight codes", expected, self.onnx.constant(rows.input[0]))
        scales = self.arrays[operation["scales"]["tensor"]]
        self._compare(name, "weight scales", scales[:, None], self.onnx.constant(factors.input[0]))

    def _float_constants(self, graph: Mapping[str, Any]) -> None:
        """Compare the constants of float operations that the file holds unchanged."""
        constants = [operation for operation in graph["operations"] if operation["type"] == "Constant"]
        for i, operation in enumerate(constants):
            found = self.onnx.initializer(f"constant_{i}")
            if found is not None:
                self._compare(operation["output"], "values", self.arrays[operation["value"]["tensor"]], found)

    def _operators(self, operation: Mapping[str, Any]) -> None:
        """Compare operators of an ONNX file, which stay as they are: their types, attributes and constants."""
        onnx = require_onnx()
        body = onnx.load_from_string(self.arrays[operation["content"]["tensor"]].tobytes()).graph
        for tensor in body.initializer:
            expected, found = onnx.numpy_helper.to_array(tensor), self.onnx.constant(f"{tensor.name}.constant")
            if expected.dtype.kind in "biuf":
                self._compare(operation["output"], f"constant {tensor.name}", expected, found)
        for node in body.node:
            name = next(name for name in node.output if name)
            found = self.onnx.node(name)
            same = (found.op_type, found.domain) == (node.op_type, node.domain)
            plain = not any(entry.HasField("g") for entry in node.attribute)  # names in subgraphs may be new
            if not same or (plain and list(found.attribute) != list(node.attribute)):
                raise UnexpectedStructureError(f"expected {node.op_type} as in its file, but got {found.op_type}")

    def _checks(self, tensor: Mapping[str, Any], operation: Any, tensors: Mapping[str, Any]) -> Iterator[Any]:
        if operation is not None and operation["type"] == "Pad":
            yield lambda: self._padding(operation, tensor)
            if not tensor.get("signed", False):  # integers are padded directly, without a quantizer
                yield lambda: self._dequantizers(tensor, tensors)
                return
        pixels = operation is not None and operation["type"] == "ReadPixels"
        if pixels:
            yield lambda: self._pixels(operation)
        tabled = pixels and self.onnx.initializer(f"{tensor['name']}.factor") is None
        if tabled or (operation is not None and operation["type"] == "Movement"):  # integers without a quantizer
            yield lambda: self._dequantizers(tensor, tensors)
            return
        if operation is not None and operation["type"] not in {"Quantize", "ReadPixels"}:
            yield lambda: self._operation(operation, tensors)
        yield lambda: self._quantizer(tensor, None if operation is None else operation["type"])
        yield lambda: self._dequantizers(tensor, tensors)

    def _pixels(self, operation: Mapping[str, Any]) -> None:
        """Compare the constants that turn bytes into quantized values; which of them are there depends on the table."""
        name = operation["output"]
        for part in ("factor", "offset", "table"):
            found = self.onnx.initializer(f"{name}.{part}")
            if found is not None:
                self._compare(name, part, self.arrays[operation[part]["tensor"]].reshape(-1), found.reshape(-1))

    def _operation(self, operation: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        node, name = self.onnx.producer(operation["output"]), operation["output"]
        kinds = (operation["function"],) if operation["type"] == "Lookup" else _KINDS[operation["type"]]
        if node.op_type not in kinds:
            raise UnexpectedStructureError(f"expected the operator {kinds[0]}, but got {node.op_type}")
        inputs = [self.onnx.source(entry) for entry in node.input[: len(operation["inputs"])]]
        if inputs != operation["inputs"]:
            raise UnexpectedStructureError(f"expected {node.op_type} to read {operation['inputs']}, but got {inputs}")
        if operation["type"] == "Lookup":
            wanted = np.asarray(operation["parameters"], np.float32)
            self._compare(name, "parameters", wanted, self.onnx.parameters(node))
        if "codes" in operation:
            self._weights(operation, node)
            self._bias(operation, node, tensors[operation["inputs"][0]])

    def _weights(self, operation: Mapping[str, Any], node: Any) -> None:
        name = operation["output"]
        stored, scales, zeros = self.onnx.dequantized(node.input[1])
        expected = self.arrays[operation["codes"]["tensor"]] << np.int8(operation["shift"])
        mover = self.onnx.mover(node.input[0])
        if mover is not None and mover.op_type == "SpaceToDepth":
            stored = _unfold(stored, attributes(mover)["blocksize"])
            expected = _embed(expected, stored.shape, operation["pads"])
        elif mover is not None:
            # channels appended by Pad have zero weights
            missing = stored.shape[1] - expected.shape[1]
            expected = np.pad(expected, [(0, 0), (0, max(missing, 0)), *[(0, 0)] * (expected.ndim - 2)])
        self._compare(name, "weight codes", expected, stored)
        self._compare(name, "weight scales", self.arrays[operation["scales"]["tensor"]], scales)
        self._compare(name, "weight zero points", np.zeros(zeros.shape), zeros)

    def _bias(self, operation: Mapping[str, Any], node: Any, source: Mapping[str, Any]) -> None:
        name, expected = operation["output"], self.arrays[operation["bias"]["tensor"]]
        if len(node.input) < 3 or not node.input[2]:
            self._compare(name, "bias codes", expected, np.zeros_like(expected))
            return
        wanted = np.float32(source["scale"]) * self.arrays[operation["scales"]["tensor"]]
        if source.get("signed", False):
            real = (expected.astype(np.float64) * wanted).astype(np.float32)
            self._compare(name, "bias", real, self.onnx.constant(node.input[2]))
            return
        codes, scales, zeros = self.onnx.dequantized(node.input[2])
        self._compare(name, "bias codes", expected, codes)
        self._compare(name, "bias scales", wanted, scales)
        self._compare(name, "bias zero points", np.zeros(zeros.shape), zeros)

    def _quantizer(self, tensor: Mapping[str, Any], made_by: str | None) -> None:
        name, full = tensor["name"], _FULL_RANGES[bool(tensor.get("signed", False))]
        expected = (full[0], full[0] + 2 ** tensor["bits"] - 1)
        quantizer, bounds = self.onnx.quantizer(name)
        # Operations that only move integers keep their range without another Clip.
        if bounds is not None or made_by not in _MOVING:
            found = full if bounds is None else bounds
            self._compare(name, "range of codes", np.array(expected), np.array(found))
        self._parameters(tensor, quantizer)

    def _padding(self, operation: Mapping[str, Any], tensor: Mapping[str, Any]) -> None:
        name, signed = operation["output"], bool(tensor.get("signed", False))
        node = self.onnx.producer(name) if signed else self.onnx.node(name)
        if node.op_type != "Pad" or self.onnx.source(node.input[0]) != operation["inputs"][0]:
            raise UnexpectedStructureError(f"expected Pad of {operation['inputs'][0]!r}, but got {node.op_type}")
        mode = attributes(node).get("mode", b"constant").decode()
        if mode != _PAD_MODES[operation["mode"]]:
            raise UnexpectedStructureError(f"expected {name!r} to be padded as {operation['mode']}, but got {mode}")
        self._compare(name, "padding", np.array(operation["pads"]), self.onnx.constant(node.input[1]))
        if mode == "constant":
            value = self.onnx.constant(node.input[2]) if len(node.input) > 2 else np.zeros(())
            self._compare(name, "padding value", np.array(0 if signed else tensor["zero_point"]), value)

    def _dequantizers(self, tensor: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        for reader in self.onnx.readers(tensor["name"]):
            if reader.output[0] in tensors:
                continue  # an operation of the graph
            if reader.op_type == "DequantizeLinear":
                self._parameters(tensor, reader)
            elif reader.op_type == "Pad":
                padding = self.onnx.constant(reader.input[2]) if len(reader.input) > 2 else np.zeros(())
                self._compare(tensor["name"], "padding", np.array(tensor["zero_point"]), padding)
            if reader.op_type in {"Pad", "SpaceToDepth"}:
                for moved in self.onnx.readers(reader.output[0]):
                    self._parameters(tensor, moved)

    def _parameters(self, tensor: Mapping[str, Any], node: Any) -> None:
        scale, zero_point = (self.onnx.constant(entry) for entry in node.input[1:3])
        self._compare(tensor["name"], "scale", np.array(np.float32(tensor["scale"])), scale.reshape(()))
        self._compare(tensor["name"], "zero point", np.array(tensor["zero_point"]), zero_point.reshape(()))

    def _compare(self, tensor: str, part: str, expected: Array, got: Array) -> None:
        # All values are integers below 2^31 or float32, which float64 holds exactly.
        wanted, found = (np.asarray(array).astype(np.float64) for array in (expected, got))
        self.compared += wanted.size
        if wanted.shape != found.shape:
            detail = f"expected shape {wanted.shape}, but got {found.shape}"
            self._add(ConstantDifference(tensor, part, wanted.size, wanted.size, detail))
            return
        differing = np.argwhere(wanted != found)
        if len(differing):
            at = tuple(int(index) for index in differing[0])
            where = f" at {at}" if at else ""
            detail = f"expected {_number(wanted[at])}, but got {_number(found[at])}{where}"
            self._add(ConstantDifference(tensor, part, wanted.size, len(differing), detail))

    def _add(self, difference: ConstantDifference) -> None:
        # The same constant is compared for the quantizer and for every dequantizer of its tensor.
        if difference not in self.differences:
            self.differences.append(difference)


def _number(value: np.float64) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.9g}"


def _unfold(codes: Array, block: int) -> Array:
    """Undo SpaceToDepth in weights: (O, (row, column, C), H, W) → (O, C, H·block, W·block)."""
    out_channels, channels, height, width = codes.shape
    blocks = codes.reshape(out_channels, block, block, channels // block**2, height, width)
    return blocks.transpose(0, 3, 4, 1, 5, 2).reshape(out_channels, -1, height * block, width * block)


def _embed(codes: Array, shape: tuple[int, ...], pads: list[int]) -> Array:
    """Pad a kernel of stride 2 to whole blocks of pixels; odd padding starts in the middle of a block."""
    around = [(pads[axis] % 2, max(0, shape[2 + axis] - codes.shape[2 + axis] - pads[axis] % 2)) for axis in (0, 1)]
    return np.pad(codes, [(0, 0), (0, 0), *around])
