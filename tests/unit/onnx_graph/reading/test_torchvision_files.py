"""A segmenter and a detector of torchvision, as torch.onnx writes them: no integer differs."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "exporter", "free"),
    [
        ("lraspp_mobilenet_v3_large", "dynamo", True),
        ("lraspp_mobilenet_v3_large", "legacy", True),
        ("ssdlite320_mobilenet_v3_large", "legacy", False),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "legacy", True),
    ],
)
def test_no_integer_of_a_file_of_torchvision_differs(
    name: str, exporter: str, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from torchvision_files import converted, exported

    content, shape = exported(name, exporter, free=free, size=64)
    found = converted(content, shape)
    assert found["differing"] == 0
    assert found["integers"] > 10_000
    assert found["integer_share"] > 0.9


class Enlarging(nn.Module):
    """A segmenter in small: its map takes the size of the image, which shape arithmetic reads from integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(self.first(x).relu())
        return functional.interpolate(found, size=x.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.filterwarnings("ignore")  # of the exporter, which is deprecated
def test_a_map_of_the_images_free_size_is_exact_at_other_sizes() -> None:
    torch.manual_seed(0)
    file, axes = io.BytesIO(), {"image": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(
        Enlarging().eval(), torch.zeros(1, 3, 32, 32), file, dynamo=False, opset_version=17, input_names=["image"],
        dynamic_axes=axes,
    )  # fmt: skip
    sizes = ((2, 3, 32, 32), (1, 3, 20, 46))
    samples = [{"image": np.random.default_rng(i).random(size, dtype=np.float32)} for i, size in enumerate(sizes)]
    graph = quantize_onnx(read_onnx(file.getvalue()), samples).graph
    for sample in samples:
        assert compare_integers(graph, write_onnx(graph), sample).mismatches == 0
