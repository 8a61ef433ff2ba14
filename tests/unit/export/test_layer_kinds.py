"""Layers and products of all kinds, from a network as it is written to the integers that onnxruntime computes.

Transposed convolutions, products with parameters outside of layers, computed weights, subclasses, padding of any mode.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from cpt_deploy.bundle.runtime.operators import float_operators, optimized_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.export import write_onnx
from cpt_deploy.export.programs import load_program, write_torchscript
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.integer.graph import from_dict, to_dict
from cpt_deploy.onnx_graph.float_network import write_float_onnx
from cpt_deploy.quantization import QuantizationConfig, calibrate, make_symmetric, prepare
from cpt_deploy.quantization.conversion.activation_quantizers import has_float_operations
from cpt_deploy.validation import layer_saturation

Forward = Callable[[Any, Tensor], Tensor]
IMAGE, ROW, SIGNAL = (3, 12, 12), (6,), (3, 14)


class Written(nn.Module):
    """A network whose forward is a function of itself and its input; tensors become parameters."""

    def __init__(self, function: Forward, **parts: Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Defaults(nn.Conv2d):
    """Sets defaults and nothing else."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)


class Norm(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-2)


class Doubled(nn.Conv2d):
    """Computes something else than its base."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (std + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def image(*parts: nn.Module, channels: int = 8) -> nn.Sequential:
    return nn.Sequential(*parts, *head(channels))


def autoencoder(**options: Any) -> nn.Sequential:
    options = {"kernel_size": 4, "stride": 2, "padding": 1} | options
    return image(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 8, **options), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.ReLU(),
    )  # fmt: skip


def pruned() -> nn.Module:
    network = image(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU())
    prune.l1_unstructured(network[0], "weight", 0.5)
    prune.l1_unstructured(network[0], "weight", 0.2)
    prune.ln_structured(network[2], "weight", 0.3, 2, 1)
    return network


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3))
    layer.weight_v.data *= 3.0
    layer.weight_g.data *= 1.5
    return image(layer, nn.ReLU())


def lazy() -> nn.Module:
    network = image(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConvTranspose2d(8, 2, 2))
    network(torch.zeros(2, *IMAGE))
    return network


R = torch.randn
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed": (autoencoder, IMAGE),
    "transposed, grouped": (lambda: autoencoder(groups=4, bias=False), IMAGE),
    "transposed, dilated": (lambda: autoencoder(kernel_size=3, dilation=2, output_padding=1), IMAGE),
    "transposed, stride 1": (lambda: autoencoder(kernel_size=3, stride=1), IMAGE),
    "transposed, unequal": (lambda: autoencoder(kernel_size=(3, 2), stride=(1, 3), padding=(2, 0)), IMAGE),
    "transposed, first": (lambda: image(nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), nn.ReLU()), IMAGE),
    "transposed, signal": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 6, 3, 2, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2),
            nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(56, 5),
        ),
        SIGNAL,
    ),
    "output size": (
        lambda: Written(
            lambda s, x: s.head(s.up(s.down(x), output_size=x.shape[2:])),
            down=nn.Conv2d(3, 8, 3, 2, 1), up=nn.ConvTranspose2d(8, 8, 3, 2, 1), head=head(8),
        ),
        IMAGE,
    ),
    "linear": (
        lambda: Written(lambda s, x: functional.linear(s.a(x).relu(), s.w, s.b), a=nn.Linear(6, 8), w=R(5, 8), b=R(5)),
        ROW,
    ),
    "matmul": (lambda: Written(lambda s, x: s.a(x).relu() @ s.w + s.b, a=nn.Linear(6, 8), w=R(8, 5), b=R(5)), ROW),
    "matmul, transposed": (
        lambda: Written(lambda s, x: torch.matmul(s.a(x).relu(), s.w.t()), a=nn.Linear(6, 8), w=R(5, 8)),
        ROW,
    ),
    "addmm": (lambda: Written(lambda s, x: torch.addmm(s.b, s.a(x), s.w), a=nn.Linear(6, 8), w=R(8, 5), b=R(5)), ROW),
    "tied": (lambda: Written(lambda s, x: (x @ s.w).relu() @ s.w.t(), w=R(6, 9)), ROW),
    "conv2d": (
        lambda: Written(
            lambda s, x: s.head(functional.conv2d(x, s.w, s.b, 2, padding=1).relu()), w=R(8, 3, 3, 3), b=R(8),
            head=head(8),
        ),
        IMAGE,
    ),
    "conv_transpose2d": (
        lambda: Written(
            lambda s, x: s.head(functional.conv_transpose2d(x, s.w, stride=2, padding=1).relu()), w=R(3, 8, 4, 4),
            head=head(8),
        ),
        IMAGE,
    ),
    "computed weight": (
        lambda: Written(
            lambda s, x: s.head(functional.conv2d(x, (s.w - s.w.mean((1, 2, 3), keepdim=True)) * s.g).relu()),
            w=R(8, 3, 3, 3), g=R(8, 1, 1, 1), head=head(8),
        ),
        IMAGE,
    ),
    "subclasses": (lambda: image(Defaults(3, 8), Norm(8), nn.ReLU()), IMAGE),
    "subclass that doubles": (lambda: image(Doubled(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU()), IMAGE),
    "subclass that standardises": (lambda: image(Standardised(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), IMAGE),
    "parametrized subclass": (lambda: image(parametrizations.weight_norm(Standardised(3, 8, 3)), nn.ReLU()), IMAGE),
    "lazy": (lazy, IMAGE),
    "weight norm": (lambda: image(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU()), IMAGE),
    "weight norm, older": (old_weight_norm, IMAGE),
    "pruned": (pruned, IMAGE),
    "reflect and replicate": (
        lambda: image(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.ReflectionPad2d((1, 2, 0, 1)),
            nn.Conv2d(8, 8, 3, padding="same", padding_mode="replicate"), nn.ReplicationPad2d(1),
        ),
        IMAGE,
    ),
    "circular": (
        lambda: image(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.CircularPad2d(1), nn.Conv2d(8, 8, 3)),
        IMAGE,
    ),
    "zeros": (lambda: image(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.ZeroPad2d(-1)), IMAGE),
    "constant": (lambda: image(nn.Conv2d(3, 8, 3), nn.ConstantPad2d(1, 0.7), nn.Conv2d(8, 8, 3)), IMAGE),
    "channels": (
        lambda: Written(
            lambda s, x: s.head(functional.pad(s.a(x).relu(), (0, 0, 0, 0, 2, 2)) + s.b(x)),
            a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 8, 3), head=head(8),
        ),
        IMAGE,
    ),
    "signal": (
        lambda: nn.Sequential(
            nn.ReflectionPad1d(2), nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(),
            nn.Linear(72, 5),
        ),
        SIGNAL,
    ),
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, *, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data *= torch.where(torch.rand_like(module.weight) < 0.2, -1.0, 1.0)
            nn.init.normal_(module.bias, std=0.3)
    return network, shape


def gradients(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    result = network(x)
    (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
    return result.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.by_default("*-integers")
@pytest.mark.parametrize("with_float", [False, True], ids=["integers", "float parts"])
@every_network
def test_with_float_bits_it_computes_and_learns_what_the_network_does(name: str, with_float: bool) -> None:
    network, shape = build(name)
    if with_float:
        network = nn.Sequential(network, nn.GELU(), nn.Softmax(dim=1))
    x = R(4, *shape)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig(min_bits=32, max_bits=32)).train()
    model.set_bits(32, 32)
    assert has_float_operations(model.network) is with_float
    expected, wanted = gradients(network.train(), x)
    found, got = gradients(model, x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    # parameters have other names in the prepared network, but the same gradients
    sizes = [sorted(float(gradient.norm()) for gradient in grads.values()) for grads in (got, wanted)]
    assert len(sizes[0]) == len(sizes[1])
    assert np.allclose(*sizes, rtol=1e-3, atol=1e-4)


@every_network
def test_training_on_codes_is_training_module_by_module(name: str) -> None:
    """The logits of a step, and its gradients but for what rounding makes of them."""
    network, shape = build(name)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig(min_bits=8)).train()
    by_modules = copy.deepcopy(model)
    model.compute, by_modules.compute = "float32", "modules"
    x = R(16, *shape)
    expected, wanted = gradients(by_modules, x)
    found, got = gradients(model, x)
    width = float(expected.max() - expected.min())
    assert torch.allclose(found, expected, atol=4 * width / 255)
    assert got.keys() == wanted.keys()
    greatest = max(float(gradient.norm()) for gradient in wanted.values())
    for key, gradient in got.items():  # a bias before BatchNorm has a gradient of rounding errors alone
        assert float((gradient - wanted[key]).norm()) <= 0.2 * float(wanted[key].norm()) + 0.02 * greatest, key


@pytest.mark.parametrize("name", ["transposed", "matmul", "computed weight", "pruned", "reflect and replicate"])
def test_a_few_steps_on_codes_lower_the_loss(name: str) -> None:
    network, shape = build(name)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig()).train()
    model.compute = "float32"
    x, labels = R(32, *shape), torch.arange(32) % 5
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for step in range(20):
        model.set_step(step)
        loss = functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# --- integers ---------------------------------------------------------------------------------------------------------


def frozen(name: str, *, symmetric: bool = False, **bits: Any) -> IntegerGraph:
    network, shape = build(name)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig())
    if symmetric:
        make_symmetric(model)
    calibrate(model, [R(4, *shape) for _ in range(2)], **bits)
    return freeze(model, **bits)


def assert_exact(graph: IntegerGraph, x: Tensor) -> None:
    """Compare all codes of a graph, as it is after being stored, with onnxruntime's; none is computed in float."""
    graph = from_dict(*to_dict(graph))
    file, names = write_onnx(graph), list(graph.tensors)
    proto = onnx.load_model_from_string(file)
    kinds = {name: TensorProto.INT8 if tensor.signed else TensorProto.UINT8 for name, tensor in graph.tensors.items()}
    proto.graph.output.extend(helper.make_tensor_value_info(name, kinds[name], None) for name in names)
    served = open_session(proto.SerializeToString(), threads=1).run([*names, "logits"], {"image": x.numpy()})
    executor = IntegerExecutor(graph)
    codes = executor.trace(x)
    differing = {name: int((codes[name].numpy() != got).sum()) for name, got in zip(names, served, strict=False)}
    assert not {name: count for name, count in differing.items() if count}
    assert np.array_equal(executor(x).numpy(), served[-1])
    assert np.array_equal(open_session(file, threads=1).run(["logits"], {"image": x.numpy()})[0], served[-1])


@pytest.mark.by_default("*'activation_bits'*")
@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "activation_bits": 5}, {"weight_bits": 2}], ids=str)
@every_network
def test_every_integer_is_onnxruntimes_and_none_is_computed_in_float(name: str, bits: dict[str, int]) -> None:
    graph = frozen(name, **bits)
    x = R(3, *NETWORKS[name][1])
    assert_exact(graph, x)
    assert float_operators(write_onnx(graph)) == {}
    assert not {"DequantizeLinear", "QuantizeLinear"} & {
        kind for kind, count in optimized_operators(write_onnx(graph)).items() if count > 1
    }
    assert torch.equal(load_program("torchscript", write_torchscript(graph))(x), IntegerExecutor(graph)(x))


@every_network
def test_signed_activations_are_exact(name: str) -> None:
    graph = frozen(name, symmetric=True)
    assert_exact(graph, R(3, *NETWORKS[name][1]))
    assert set(float_operators(write_onnx(graph))) <= {"Relu"}


@every_network
def test_portable_codes_cannot_saturate(name: str) -> None:
    graph = frozen(name)
    verdicts = [layer_saturation(operation.source, operation.executed_codes, 8) for operation in graph.weighted()]
    assert not [verdict.name for verdict in verdicts if verdict.possible]


@pytest.mark.parametrize("name", ["transposed, grouped", "pruned", "circular"])
def test_the_float_network_is_written_beside_it(name: str) -> None:
    network, shape = build(name)
    model = prepare(network, torch.zeros(2, *shape), QuantizationConfig())
    x = R(3, *shape)
    with torch.no_grad():
        expected = network.eval()(x).numpy()
    session = open_session(write_float_onnx(model), threads=1)
    assert np.allclose(session.run(["logits"], {"image": x.numpy()})[0], expected, rtol=1e-3, atol=1e-4)


def test_padding_with_zeros_is_no_operation_of_its_own() -> None:
    """The "same" padding of TensorFlow is wider at the end; a convolution pads so itself."""
    graph = frozen("zeros")
    _, first, *_ = graph.operations
    assert type(first).__name__ == "Convolution"
    assert first.pads == (0, 0, 1, 1)  # type: ignore[attr-defined]


def test_circular_padding_asks_for_the_opset_that_has_it() -> None:
    assert onnx.load_model_from_string(write_onnx(frozen("circular"))).opset_import[0].version == 19
    assert onnx.load_model_from_string(write_onnx(frozen("reflect and replicate"))).opset_import[0].version == 17


def test_multiply_accumulates_of_a_transposed_convolution_are_counted_at_its_input() -> None:
    model = prepare(autoencoder(), torch.zeros(2, *IMAGE), QuantizationConfig())
    macs = {layer.name: (layer.macs, layer.weights) for layer in model.layers()}
    assert macs["3"] == (6 * 6 * 8 * 8 * 16, 8 * 8 * 16)
    assert macs["6"] == (12 * 12 * 8 * 4, 8 * 4)
