"""Programs that run with PyTorch alone: the logits of onnxruntime, in processes that do not know this project."""

import subprocess
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.export import write_onnx
from cpt_deploy.export.programs import WRITERS, load_program
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.integer.executor import fits_float32
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare

ALONE = """
import sys
sys.modules |= dict.fromkeys(("cpt_deploy", "cpt_cli", "cpt_serving", "numpy", "onnx", "onnxruntime"))
import torch
kind, model, inputs, logits = sys.argv[1:]
program = torch.jit.load(model) if kind == "torchscript" else torch.export.load(model).module()
expected = torch.load(logits)
for x, y in zip(torch.load(inputs), expected, strict=True):
    for _ in range(3):  # TorchScript compiles anew after its first runs
        assert torch.equal(program(x), y)
print("same", len(expected))
"""


class Everything(nn.Module):
    """One of each operation that an integer graph can hold on images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.left = nn.Conv2d(4, 4, 3, padding="same", groups=4)
        self.right = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Hardswish())
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.average = nn.AvgPool2d(2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        x = torch.cat([self.left(left), self.right(right)], dim=1)
        shuffled = x.view(x.size(0), 2, 4, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape)
        x = self.average(self.pool(x + shuffled))
        return self.last((x * self.gate(x)).mean([2, 3]))


def frozen(network: nn.Module, shape: tuple[int, ...], weight_bits: int | None = None) -> IntegerGraph:
    torch.manual_seed(0)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig(min_bits=3, max_bits=8))
    calibrate(model, [torch.randn(8, *shape)], weight_bits=weight_bits)
    return freeze(model, weight_bits=weight_bits)


@pytest.fixture(scope="module")
def everything() -> IntegerGraph:
    torch.manual_seed(0)
    return frozen(Everything(), (3, 32, 32), weight_bits=5)


def test_the_network_of_these_tests_has_every_operation(everything: IntegerGraph) -> None:
    kinds = {type(operation).__name__ for operation in everything.operations}
    assert kinds == {
        "Convolution", "FullyConnected", "Add", "Multiply", "Concatenate", "GlobalAverage", "Lookup", "MaxPool",
        "Reshape", "Transpose", "Slice", "Quantize",
    }  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_a_program_runs_without_this_project_and_gives_onnxruntimes_logits(
    kind: str, everything: IntegerGraph, tmp_path: Path
) -> None:
    served = OnnxRuntimeModel(write_onnx(everything))
    inputs = [2 * torch.randn(batch, 3, 32, 32) for batch in (1, 7, 2)]
    (tmp_path / "model").write_bytes(WRITERS[kind](everything))
    torch.save(inputs, tmp_path / "inputs")
    torch.save([torch.from_numpy(served.run({"image": x.numpy()})["logits"]) for x in inputs], tmp_path / "logits")
    words = [kind, *(str(tmp_path / name) for name in ("model", "inputs", "logits"))]
    done = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=False)
    assert done.stdout == "same 3\n", done.stderr


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)), (3, 32, 32)),
        (lambda: nn.Sequential(nn.Conv1d(2, 8, 5, 2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(56, 4)), (2, 32)),
        (lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), (20,)),
    ],
    ids=["resnet20", "one dimension", "fully connected"],
)
def test_a_program_gives_the_executors_logits_at_any_batch(kind, network, shape) -> None:
    graph = frozen(network(), shape)
    program, executor = load_program(kind, WRITERS[kind](graph)), IntegerExecutor(graph)
    for batch in (3, 1, 16):
        x = torch.randn(batch, *shape)
        assert torch.equal(program(x), executor(x))


@pytest.mark.parametrize("kind", WRITERS)
def test_sums_beyond_float32_are_taken_in_float64(kind: str) -> None:
    """Odd sums above 2^24, which float32 cannot hold, decide the last code of a logit."""
    graph = frozen(nn.Sequential(nn.Linear(700, 2)), (700,))
    (layer,) = graph.weighted()
    source = replace(graph.tensors[layer.inputs[0]], scale=1.0, zero_point=0)
    # acc · 1/2 − 2^23 is a code: the bias takes away what 700 · 127 · 255 leaves above it
    wide = replace(
        layer,
        codes=np.full((2, 700), 127, np.int8),
        bias=np.array([-22_669_500 + 5, -22_669_500 + 2**26 + 8], np.int32),
        scales=np.full(2, 0.5, np.float32),
    )
    output = replace(graph.tensors[graph.outputs[0]], scale=1.0, zero_point=0)
    graph = replace(graph, operations=(graph.operations[0], wide), tensors={source.name: source, output.name: output})
    assert not fits_float32(wide, source)
    x = torch.full((2, 700), 255.0)
    x[1, 0] -= 1
    logits = load_program(kind, WRITERS[kind](graph))(x)
    accumulators = x.long() @ torch.full((700, 2), 127) + torch.from_numpy(wide.bias).long()
    assert accumulators[:, 0].tolist() == [5, 5 - 127]
    assert logits.tolist() == [[2.0, 255.0], [0.0, 255.0]]  # 2.5 rounds to even


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_are_int8_in_the_file_and_no_path_of_this_machine_is(kind: str) -> None:
    graph = frozen(build_model("resnet20", num_classes=10, in_channels=3, input_size=(32, 32)), (3, 32, 32))
    content = WRITERS[kind](graph)
    codes = sum(layer.codes.size for layer in graph.weighted())
    with zipfile.ZipFile(BytesIO(content)) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    weights = sum(len(data) for name, data in parts.items() if "/data/" in name and ".json" not in name)
    assert codes < weights < 1.1 * codes
    for data in parts.values():
        assert str(Path.cwd()).encode() not in data
        assert b"site-packages" not in data


def test_the_executor_leaves_no_gradient_behind(everything: IntegerGraph) -> None:
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not IntegerExecutor(everything)(x).requires_grad


def test_no_warning_of_a_deprecation_reaches_the_user(everything: IntegerGraph, recwarn) -> None:
    program = load_program("torchscript", WRITERS["torchscript"](everything))
    program(torch.randn(1, 3, 32, 32))
    assert not recwarn.list


@pytest.mark.parametrize("kind", WRITERS)
def test_bytes_that_are_no_program_are_a_runtime_error(kind: str) -> None:
    with pytest.raises(RuntimeError, match="archive"):
        load_program(kind, b"no program")
