"""Bytes of images as input: the same integers as from normalised images, for every byte, layout and order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cpt_deploy.bundle import ImageProcessor, OnnxRuntimeModel, Preprocessing
from cpt_deploy.bundle.processors.pixel_format import PixelFormat
from cpt_deploy.bundle.runtime.operators import optimized_operators
from cpt_deploy.errors import ConversionError
from cpt_deploy.export.pixels import NORMALISED, reading_pixels
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.graph import IntegerGraph, from_dict, to_dict
from cpt_deploy.integer.operations import OnnxPart, ReadPixels
from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare
from cpt_deploy.validation.integers.compare_integers import compare_integers
from tests.unit.onnx_graph.reading.networks import Network

LABELS = tuple("abcde")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pictures(count: int, size: int = 16) -> np.ndarray:
    """Return pixels (N, H, W, 3) in which every byte occurs in every channel."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    pixels[0] = np.arange(size * size, dtype=np.uint8).reshape(size, size, 1)
    return pixels


def graph_of(preprocessing: Preprocessing, *, first: str = "Conv") -> IntegerGraph:
    network = Network(["N", 3, *preprocessing.size])
    network.inputs[0].name = "image"
    x = network.conv(
        "image" if first == "Conv" else network.op("Sqrt", network.op("Abs", "image")), 3, 8, strides=[2, 2]
    )
    x = network.op("Flatten", network.op("GlobalAveragePool", network.op("Relu", x)))
    network.op("Gemm", x, network.weight(5, 8), network.weight(5), transB=1)
    network.nodes[-1].output[0] = "logits"
    images = preprocessing.normalize(pictures(4))
    return quantize_onnx(read_onnx(network.file("logits")), [{"image": images}]).graph


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize(("mean", "std"), [IMAGENET, ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)])
def test_every_integer_is_that_of_normalised_images(
    layout: str, order: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    processor = ImageProcessor(Preprocessing(3, (16, 16), mean, std), LABELS, PixelFormat(layout, order))  # type: ignore[arg-type]
    floats = graph_of(processor.preprocessing)
    graph = reading_pixels(floats, processor)
    pixels = pictures(3)
    given = processor.inputs(list(pixels))["image"]
    assert given.dtype == np.uint8
    assert np.array_equal(processor.pixels_of(given), pixels)
    wanted = IntegerExecutor(floats).trace(torch.from_numpy(processor.preprocessing.normalize(pixels)))
    got = IntegerExecutor(graph).trace(torch.from_numpy(given))
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    file = write_onnx(graph)
    assert compare_integers(graph, file, {"image": given}).mismatches == 0
    for batch in (1, 3):  # a free batch
        served = OnnxRuntimeModel(file).run({"image": given[:batch]})["logits"]
        assert np.array_equal(
            served,
            OnnxRuntimeModel(write_onnx(floats)).run({"image": processor.preprocessing.normalize(pixels[:batch])})[
                "logits"
            ],
        )
    operators = optimized_operators(file)
    assert ("Mul" in operators) == (std != (1.0,) * 3), operators  # the identity needs no arithmetic
    description, arrays = to_dict(graph)
    assert torch.equal(IntegerExecutor(from_dict(description, arrays))(torch.from_numpy(given)), got["logits"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1.5), min_size=3, max_size=3),
)
def test_arithmetic_or_table_gives_the_quantized_value_of_every_byte(mean: list[float], std: list[float]) -> None:
    preprocessing = Preprocessing(3, (16, 16), tuple(mean), tuple(std))
    processor = ImageProcessor(preprocessing, LABELS, PixelFormat())
    floats = _rescaled(_GRAPH, preprocessing)
    graph = reading_pixels(floats, processor)
    pixels = pictures(1)
    wanted = IntegerExecutor(floats)(torch.from_numpy(preprocessing.normalize(pixels))).numpy()
    assert np.array_equal(OnnxRuntimeModel(write_onnx(graph)).run({"image": pixels})["logits"], wanted)


def test_a_table_that_float32_arithmetic_misses_is_a_gather() -> None:
    processor = ImageProcessor(Preprocessing(3, (16, 16), *IMAGENET), LABELS, PixelFormat())
    graph = reading_pixels(_GRAPH, processor)
    (read,) = (operation for operation in graph.operations if isinstance(operation, ReadPixels))
    table = read.table.copy()
    table[1, 100] += 1
    others = tuple(replace(o, table=table) if o is read else o for o in graph.operations)
    graph = replace(graph, operations=others)
    file = write_onnx(graph)
    assert "Gather" in optimized_operators(file)
    assert compare_integers(graph, file, {"image": pictures(2)}).mismatches == 0


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize(("mean", "std"), [IMAGENET, ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)])
def test_operators_in_float_get_the_normalised_value_of_every_byte(
    layout: str, order: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    preprocessing = Preprocessing(3, (16, 16), mean, std)
    processor = ImageProcessor(preprocessing, LABELS, PixelFormat(layout, order))  # type: ignore[arg-type]
    floats = graph_of(preprocessing, first="Abs")
    graph, pixels = reading_pixels(floats, processor), pictures(3)
    given = processor.inputs(list(pixels))["image"]
    normalised = preprocessing.normalize(pixels)
    (prologue,) = (o for o in graph.operations if isinstance(o, OnnxPart) and o.output == NORMALISED)
    assert np.array_equal(OnnxRuntimeModel(prologue.content.tobytes()).run({"image": given})[NORMALISED], normalised)
    file = write_onnx(graph)
    assert compare_integers(graph, file, {"image": given}).mismatches == 0
    wanted = OnnxRuntimeModel(write_onnx(floats)).run({"image": normalised})["logits"]
    assert np.array_equal(OnnxRuntimeModel(file).run({"image": given})["logits"], wanted)


def test_pytorch_operators_in_float_that_read_images_are_refused() -> None:
    class Begins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return logits."""
            return self.head(torch.relu(self.conv(torch.sqrt(x.abs() + 1))).mean((2, 3)))  # type: ignore[no-any-return]

    preprocessing = Preprocessing(3, (16, 16), *IMAGENET)
    model = prepare(Begins(), torch.zeros(2, 3, 16, 16), QuantizationConfig())
    calibrate(model, [torch.from_numpy(preprocessing.normalize(pictures(2)))])
    with pytest.raises(ConversionError, match="operators of PyTorch in float read the images"):
        reading_pixels(freeze(model), ImageProcessor(preprocessing, LABELS, PixelFormat()))


def _rescaled(graph: IntegerGraph, preprocessing: Preprocessing) -> IntegerGraph:
    """Return the graph with the range of the images of a preprocessing."""
    every = preprocessing.normalize(pictures(1))
    low, high = min(float(every.min()), 0.0), max(float(every.max()), 0.0)
    name = next(operation.output for operation in graph.operations if operation.inputs == ("image",))
    scale = float(np.float32(max(high - low, 1e-3) / 255))
    tensor = replace(graph.tensors[name], scale=scale, zero_point=round(-low / scale))
    return replace(graph, tensors={**graph.tensors, name: tensor})


_GRAPH = graph_of(Preprocessing(3, (16, 16), *IMAGENET))
