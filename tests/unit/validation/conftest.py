"""A small quantized network written with onnx.helper, its bundle, and images that fit it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import (
    Bundle,
    BundleContents,
    Golden,
    ImageProcessor,
    OnnxRuntimeModel,
    Preprocessing,
    write_bundle,
)
from cpt_deploy.bundle.runtime.tensors import Arrays
from cpt_deploy.signature import Signature, TensorSpec, to_json
from cpt_deploy.tasks.image_classification.samples import image_samples
from cpt_deploy.validation import (
    Accuracy,
    Reference,
    ValidationReport,
    add_intermediate_outputs,
    quantized_tensors,
    validate,
)
from cpt_deploy.validation.integers.integer_model import Execution

CLASSES = ("zero", "one", "two")
LOGIT_SCALE, LOGIT_ZERO_POINT = 0.05, 128
SIGNATURE = Signature((TensorSpec("image", "float32", (1, 8, 8)),), (TensorSpec("logits", "float32", (3,)),))
PROCESSOR = ImageProcessor(Preprocessing(channels=1, size=(8, 8), mean=(0.5,), std=(0.25,)), CLASSES)


class NetworkWriter:
    """Collects the nodes of a network with QuantizeLinear and DequantizeLinear on every activation."""

    def __init__(self, scale_shape: tuple[int, ...] = (), seed: int = 4) -> None:
        self.scale_shape = scale_shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)
        self.codes: dict[str, np.ndarray] = {}
        self.scales: dict[str, np.ndarray] = {}
        self.quantizers: list[dict] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes))
        return output

    def quantize(self, real: str, name: str, scale: float, zero_point: int = 0, bits: int = 8) -> str:
        """Return the name of the tensor that holds the dequantized values; the codes are called `name`."""
        self.quantizers.append(
            {"name": name, "scale": float(np.float32(scale)), "zero_point": zero_point, "bits": bits}
        )
        parameters = [
            self.constant(f"{name}.scale", np.full(self.scale_shape, scale, np.float32)),
            self.constant(f"{name}.zero_point", np.full(self.scale_shape, zero_point, np.uint8)),
        ]
        if bits < 8:
            low = self.constant(f"{name}.low", np.array(0, np.uint8))
            high = self.constant(f"{name}.high", np.array(2**bits - 1, np.uint8))
            self.node("QuantizeLinear", [real, *parameters], f"{name}.unclipped")
            self.node("Clip", [f"{name}.unclipped", low, high], name)
        else:
            self.node("QuantizeLinear", [real, *parameters], name)
        return self.node("DequantizeLinear", [name, *parameters], f"{name}.real")

    def weight(self, name: str, shape: tuple[int, ...], bits: int = 8) -> str:
        reach = 2 ** (bits - 1) - 1
        self.codes[name] = codes = self.rng.integers(-reach, reach + 1, shape).astype(np.int8)
        self.scales[name] = scales = (self.rng.uniform(0.3, 0.7, shape[0]) / reach).astype(np.float32)
        inputs = [
            self.constant(f"{name}.codes", codes),
            self.constant(f"{name}.scales", scales),
            self.constant(f"{name}.zeros", np.zeros(shape[0], np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.weight", axis=0)

    def model(self) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 19)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


@dataclass(frozen=True)
class Network:
    """A serialized network, its weight codes and scales by layer, and its quantized tensors."""

    model: bytes
    codes: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    quantizers: list[dict]
    tensors: tuple[str, ...] = ("x", "a", "b", "sum", "mean", "flat", "y")


def make_network(
    *, bits: int = 8, inserted: str | None = None, scale_shape: tuple[int, ...] = (), float_head: bool = False
) -> Network:
    """Convolution, residual block, mean, linear.

    Optionally with a further operator between two of its activations, scales of another shape, or a last layer whose
    result is not quantized.
    """
    w = NetworkWriter(scale_shape)
    x = w.quantize("image", "x", 1 / 32, 128)
    w.node("Conv", [x, w.weight("first", (4, 1, 3, 3), bits)], "a.conv", pads=[1, 1, 1, 1])
    a = w.quantize(w.node("Relu", ["a.conv"], "a.relu"), "a", 6 / 2**bits, bits=bits)
    if inserted is not None:
        a = w.quantize(w.node(inserted, [a], "inserted"), "inserted.codes", 0.01)
    w.node("Conv", [a, w.weight("second", (4, 4, 3, 3), bits)], "b.conv", pads=[1, 1, 1, 1])
    b = w.quantize("b.conv", "b", 0.03, 120)
    total = w.quantize(w.node("Add", [a, b], "sum.add"), "sum", 0.03, 90)
    mean = w.quantize(w.node("GlobalAveragePool", [total], "mean.pool"), "mean", 0.02, 110)
    flat = w.quantize(w.node("Flatten", [mean], "flat.flatten"), "flat", 0.02, 110)
    w.node("Gemm", [flat, w.weight("last", (3, 4))], "logits" if float_head else "y.gemm", transB=1)
    if float_head:
        return Network(w.model(), w.codes, w.scales, w.quantizers)
    w.quantize("y.gemm", "y", LOGIT_SCALE, LOGIT_ZERO_POINT)
    w.node("DequantizeLinear", ["y", "y.scale", "y.zero_point"], "logits")
    return Network(w.model(), w.codes, w.scales, w.quantizers)


def make_pooled_network() -> Network:
    """Two convolutions, concatenated and pooled; pooling follows the layout of the concatenation."""
    w = NetworkWriter()
    x = w.quantize("image", "x", 1 / 32, 128)
    branches = []
    for name in ("a", "b"):
        w.node("Conv", [x, w.weight(name, (4, 1, 3, 3))], f"{name}.conv", pads=[1, 1, 1, 1])
        branches.append(w.quantize(f"{name}.conv", name, 0.02, 100))
    joined = w.quantize(w.node("Concat", branches, "joined.concat", axis=1), "joined", 0.02, 100)
    pooled = w.node("MaxPool", [joined], "pooled.pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    mean = w.node("GlobalAveragePool", [w.quantize(pooled, "pooled", 0.02, 100)], "mean.pool")
    flat = w.node("Flatten", [w.quantize(mean, "mean", 0.02, 100)], "flat.flatten")
    w.node("Gemm", [w.quantize(flat, "flat", 0.02, 100), w.weight("last", (3, 8))], "logits", transB=1)
    return Network(w.model(), w.codes, w.scales, w.quantizers, ("x", "a", "b", "joined", "pooled", "mean", "flat"))


def graph_entry(network: Network) -> dict:
    """The graph as quantization.json describes it, as far as validation reads it."""

    def layer(kind: str, name: str, source: str, output: str) -> dict:
        stored = {part: {"tensor": f"{name}.{part}"} for part in ("codes", "scales", "bias")}
        geometry = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "groups": 1}
        facts = {"shift": 0, "bits": 8, "source": name, **(geometry if kind == "Convolution" else {})}
        return {"type": kind, "inputs": [source], "output": output, **stored, **facts}

    return {
        "signature": to_json(SIGNATURE),
        "outputs": ["y"],
        "tensors": [{**tensor, "shape": [4, 8, 8]} for tensor in network.quantizers],
        "operations": [
            {"type": "Quantize", "inputs": ["image"], "output": "x"},
            layer("Convolution", "first", "x", "a"),
            layer("Convolution", "second", "a", "b"),
            {"type": "Add", "inputs": ["a", "b"], "output": "sum"},
            {"type": "GlobalAverage", "inputs": ["sum"], "output": "mean"},
            {"type": "Reshape", "inputs": ["mean"], "output": "flat"},
            layer("FullyConnected", "last", "flat", "y"),
        ],
    }


def stored_tensors(network: Network) -> dict[str, np.ndarray]:
    """What model.safetensors holds."""
    return {
        f"{name}.{part}": value
        for name, codes in network.codes.items()
        for part, value in (
            ("codes", codes), ("scales", network.scales[name]), ("bias", np.zeros(len(codes), np.int32))
        )
    }  # fmt: skip


def write_test_bundle(path: Path, network: Network) -> Bundle:
    """Write the network's bundle, with what onnxruntime computes as its golden sample."""
    inputs = np.random.default_rng(1).normal(size=(4, 1, 8, 8)).astype(np.float32)
    logits = OnnxRuntimeModel(network.model, SIGNATURE).run({"image": inputs})["logits"]
    return write_bundle(
        path,
        contents=BundleContents(
            name="network",
            task="image-classification",
            signature=SIGNATURE,
            processor=PROCESSOR,
            onnx=network.model,
            tensors=stored_tensors(network),
            graph=graph_entry(network),
            quantization={},
            golden=Golden({"image": inputs}, {"logits": logits}, {"logits": LOGIT_SCALE}),
            architecture="test",
        ),
    )


@dataclass(frozen=True)
class RandomImages:
    """Images of noise whose labels are given."""

    labels: np.ndarray
    name: str = "noise"
    split: str = "test"
    classes: tuple[str, ...] = CLASSES

    def image(self, index: int, /) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)

    def digest(self) -> str:
        return "0" * 64

    def __len__(self) -> int:
        return len(self.labels)

    def with_classes(self, *classes: str) -> "RandomImages":
        return replace(self, classes=classes)


@dataclass
class Echo:
    """An integer model that computes what onnxruntime does, except where a test changes it."""

    model: bytes
    change: Callable[[dict[str, np.ndarray]], None] = lambda codes: None
    samples: int = 0

    def run(self, inputs: Arrays) -> Execution:
        observable = add_intermediate_outputs(
            self.model, [intermediate.name for intermediate in quantized_tensors(self.model)]
        )
        traced = OnnxRuntimeModel(observable, SIGNATURE).trace(inputs)
        codes = {name: value.copy() for name, value in traced.items()}
        outputs = {"logits": codes.pop("logits")}
        self.change(codes)
        self.samples += len(inputs["image"])
        return Execution(outputs, codes)


def measured(bundle: Bundle, images: RandomImages, *, limit: int | None = None, **settings) -> ValidationReport:
    """Validate a bundle on images; `trained` is a function from inputs to outputs, or a reference."""
    model = settings.pop("trained", None)
    samples = image_samples(images, bundle.processor, limit)
    if model is not None and not isinstance(model, Reference):
        model = Reference(model, bundle.processor, samples)
    return validate(bundle, samples, Accuracy(), unit="images", trained=model, **settings)


@pytest.fixture(scope="session")
def validated() -> Callable[..., ValidationReport]:
    return measured


@pytest.fixture(scope="session")
def network() -> Network:
    return make_network()


@pytest.fixture(scope="session")
def network_maker() -> Callable[..., Network]:
    return make_network


@pytest.fixture(scope="session")
def pooled_network() -> Network:
    return make_pooled_network()


@pytest.fixture(scope="session")
def bundle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_test_bundle(tmp_path_factory.mktemp("bundles") / "network", network)


@pytest.fixture(scope="session")
def images(bundle: Bundle) -> RandomImages:
    """150 images, three in four of which the served model labels rightly."""
    blank = RandomImages(np.zeros(150, np.int64))
    inputs = PROCESSOR.inputs([blank.image(i) for i in range(150)])
    labels = OnnxRuntimeModel(bundle.onnx_path).run(inputs)["logits"].argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 3
    return RandomImages(labels)


@pytest.fixture
def echo(network: Network) -> Echo:
    return Echo(network.model)


@pytest.fixture
def edited() -> Callable[[Bundle, Path, str], Bundle]:
    """Copies a bundle with one value of a constant changed."""

    def edit(bundle: Bundle, folder: Path, name: str) -> Bundle:
        """Return a copy of a bundle in which the first value of a constant is another, with checksums that hold."""
        folder.mkdir()
        for file in bundle.path.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        model = onnx.load(folder / "model.onnx")
        constant = next(entry for entry in model.graph.initializer if entry.name == name)
        values = numpy_helper.to_array(constant).copy()
        values.reshape(-1)[0] += np.ones((), values.dtype) if values.dtype == np.int8 else values.dtype.type(0.5)
        constant.CopyFrom(numpy_helper.from_array(values, name))
        onnx.save(model, folder / "model.onnx")
        sums = folder / "SHA256SUMS"
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        sums.write_text(sums.read_text().replace(bundle.sha256, digest))
        return Bundle.open(folder)

    return edit
