"""Networks of many kinds from `prepare` to onnxruntime: each converts, with the same integers everywhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from cpt_deploy import quantization
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.integer.operations import Quantize
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate
from tests.unit.preparation.networks import FEATURES, SHAPE, Call, Network, prepared


def trained(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> QuantizedModel:
    """Prepare a network, take a step module by module and one on codes, and calibrate."""
    model = prepared(network, shape).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, compute in enumerate(("modules", "auto")):
        model.compute = compute  # type: ignore[assignment]
        model.set_step(step)
        model.set_bits(6, 8)
        loss = model(torch.randn(4, *shape)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bool(torch.isfinite(loss))
    model.set_bits(8, 8)
    calibrate(model, [torch.randn(8, *shape)])
    return model.eval()


def served(graph: IntegerGraph, x: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return onnxruntime's results, and its codes by name."""
    proto = onnx.load_from_string(write_onnx(graph))
    for name in graph.tensors:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    session = open_session(proto.SerializeToString(), threads=1)
    results, *codes = session.run(["logits", *graph.tensors], {session.get_inputs()[0].name: x.numpy()})
    return results, dict(zip(graph.tensors, codes, strict=True))


def assert_converts(network: nn.Module, *, floats: bool, shape: tuple[int, ...] = SHAPE) -> None:
    """Compare trained network and executor, and every integer of the executor with onnxruntime's."""
    torch.manual_seed(0)
    model = trained(network, shape)
    graph, x = freeze(model), torch.randn(5, *shape)
    assert graph.has_float_operations == floats
    results, codes = served(graph, x)
    executor = IntegerExecutor(graph)
    entries = {o.output: torch.from_numpy(codes[o.output]) for o in graph.operations if isinstance(o, Quantize)}
    own = executor.trace(x, entries)
    differing = {name: int((own[name].numpy() != codes[name]).sum()) for name in graph.tensors}
    assert not {name: count for name, count in differing.items() if count}
    with torch.no_grad():
        expected = model(x)
        largest = float(expected.abs().max())
        assert torch.allclose(executor(x), expected, atol=0.03 * largest)
        assert np.allclose(results, executor(x).numpy(), atol=0.03 * largest)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "x / 2": lambda x, c: x / 2,
    "3 * x": lambda x, c: 3 * x,
    "x - 1": lambda x, c: x - 1,
    "1 - x": lambda x, c: 1 - x,
    "-x": lambda x, c: -x,
    "torch.neg": lambda x, c: torch.neg(x),
    "(x - buffer) / 2": lambda x, c: (x - c) / 2,
    "buffer - x": lambda x, c: c - x,
    "x * buffer": lambda x, c: x * c,
    "x / buffer": lambda x, c: x / (c.abs() + 1),
    "rsub": lambda x, c: torch.rsub(x, 1.5, alpha=2),
    "add with alpha": lambda x, c: torch.add(x, 1.0, alpha=3.0),
    "sub in place": lambda x, c: (x + 0).sub_(0.5),
    "clamp": lambda x, c: torch.clamp(x, -1, 0.5),
    "clamp(min)": lambda x, c: x.clamp(min=-0.2),
    "clamp_max": lambda x, c: x.clamp_max(0.3),
    "clip": lambda x, c: torch.clip(x, max=0.4),
    "relu by clamp": lambda x, c: x.clamp(0),
    "minimum": lambda x, c: torch.minimum(x, torch.tensor(0.5)),
    "maximum": lambda x, c: torch.maximum(torch.tensor(-0.1), x),
    "hardtanh": lambda x, c: functional.hardtanh(x, -0.3, 0.7),
    "hardtanh above zero": lambda x, c: functional.hardtanh(x, 0.1, 0.7),
    "hardsigmoid": lambda x, c: functional.hardsigmoid(x),
    "hardswish": lambda x, c: functional.hardswish(x),
    "relu6": lambda x, c: functional.relu6(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arithmetic_with_constants_and_clamps_are_integers_on_positions_features_and_results(name: str) -> None:
    function = FUNCTIONS[name]
    assert_converts(Network(Call(function, 4), Call(function, 2), Call(function, 2)), floats=False)


class Chain(nn.Module):
    """Functions of `FUNCTIONS` one after the other."""

    def __init__(self, names: list[str], rank: int) -> None:
        super().__init__()
        self.calls = nn.Sequential(*(Call(FUNCTIONS[name], rank) for name in names))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.calls(x)
        return result


@given(st.lists(st.sampled_from(list(FUNCTIONS)), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
@settings(max_examples=30)
def test_any_sequence_of_them_computes_what_it_is_converted_from(
    names: list[str], on_features: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    part = Chain(names, 2 if on_features else 4)
    network = (Network(features=part) if on_features else Network(part)).eval()
    for module in network.modules():
        if isinstance(module, Call):
            nn.init.uniform_(module.get_buffer("constants"), -2, 2)
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        expected = network(x)
        model = quantization.prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig(min_bits=32, max_bits=32))
        assert not any(node.meta.get("is_float") for node in model.network.graph.nodes)
        assert torch.allclose(model(x), expected, rtol=1e-3, atol=1e-4 * float(1 + expected.abs().max()))


AVERAGES: dict[str, tuple[nn.Module, bool]] = {
    "cut windows": (nn.AvgPool2d(3, 2, ceil_mode=True), True),
    "cut windows with padding": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), True),
    "cut windows, padding not counted": (
        nn.AvgPool2d((3, 2), 3, padding=1, ceil_mode=True, count_include_pad=False),
        True,
    ),
    "cut windows, own divisor": (nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5), True),
    "padding not counted": (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), True),
    "uneven windows": (nn.AdaptiveAvgPool2d((3, None)), True),
    "own divisor": (nn.AvgPool2d(2, divisor_override=3), False),
    "nothing cut": (nn.AvgPool2d(2, ceil_mode=True), False),
    "even windows": (nn.AdaptiveAvgPool2d((4, 1)), False),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_convert_whatever_their_windows_are(name: str) -> None:
    pool, floats = AVERAGES[name]
    assert_converts(Network(pool), floats=floats)


SIZES: dict[str, Callable[..., Tensor]] = {
    "avg_pool2d of shape[2:]": lambda x, c: x * functional.avg_pool2d(x, x.shape[2:]),
    "avg_pool2d of size()": lambda x, c: x * functional.avg_pool2d(x, (x.size(2), x.size(-1))),
    "max_pool2d of a half": lambda x, c: functional.max_pool2d(x, x.shape[2] // 2),
    "adaptive_avg_pool2d": lambda x, c: functional.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.size(3) // 4)),
    "a factor of the size": lambda x, c: x * x.shape[1] ** -0.5,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_input_are_numbers(name: str) -> None:
    assert_converts(Network(Call(SIZES[name], 4)), floats=False)


NORMS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "no statistics": (lambda: nn.BatchNorm2d(FEATURES, track_running_stats=False), True),
    "no statistics, not affine": (lambda: nn.BatchNorm2d(FEATURES, affine=False, track_running_stats=False), True),
    "not affine": (lambda: nn.BatchNorm2d(FEATURES, affine=False), False),
    "cumulative": (lambda: nn.BatchNorm2d(FEATURES, momentum=None), False),
    "cumulative beside float": (lambda: nn.Sequential(nn.BatchNorm2d(FEATURES, momentum=None), nn.GELU()), True),
    "group": (lambda: nn.GroupNorm(2, FEATURES), True),
    "instance": (lambda: nn.InstanceNorm2d(FEATURES, affine=True), True),
    "instance with statistics": (lambda: nn.InstanceNorm2d(FEATURES, track_running_stats=True), True),
}


@pytest.mark.filterwarnings("ignore:each request will be computed by itself")
@pytest.mark.parametrize("name", NORMS)
def test_normalisations_convert_alone_and_behind_a_layer(name: str) -> None:
    make, floats = NORMS[name]
    network = Network(make())
    network.first[1] = make()
    assert_converts(network, floats=floats)


@pytest.mark.filterwarnings("ignore:each request will be computed by itself")
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_batchnorm_on_features_alone_converts(options: dict[str, Any]) -> None:
    assert_converts(
        Network(features=nn.BatchNorm1d(FEATURES, **options)), floats=options == {"track_running_stats": False}
    )


class Twice(nn.Module):
    """A convolution, a BatchNorm, an activation and a Linear that are used twice each."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), activation
        self.flat, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.also = self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv(x)))
        x = self.activation(self.also(self.conv(x)))
        x = self.activation(self.flat(self.linear(x.mean((2, 3)))))
        result: Tensor = self.flat(self.linear(x))
        return result


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.GELU()])
def test_modules_that_are_used_twice_convert(activation: nn.Module) -> None:
    assert_converts(Twice(activation), floats=isinstance(activation, nn.GELU))


class ComputedBias(nn.Module):
    """A product whose weight and bias are computed of parameters, as at equal learning rates."""

    def __init__(self, product: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.product, self.w, self.b = product, nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, 0.3 * self.w, bias=0.5 * self.b)


def pruned_bias(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "bias", 0.5)  # type: ignore[no-any-return]


COMPUTED_BIASES: dict[str, Callable[[], Network]] = {
    "linear": lambda: Network(features=ComputedBias(functional.linear, FEATURES, FEATURES)),
    "conv2d": lambda: Network(ComputedBias(functional.conv2d, FEATURES, FEATURES, 3, 3)),
    "conv_transpose2d": lambda: Network(ComputedBias(functional.conv_transpose2d, FEATURES, FEATURES, 2, 2)),
    "pruned": lambda: Network(
        pruned_bias(nn.Conv2d(FEATURES, FEATURES, 3)), pruned_bias(nn.Linear(FEATURES, FEATURES))
    ),
}


@pytest.mark.parametrize("name", COMPUTED_BIASES)
def test_a_bias_that_is_computed_is_added_in_float_and_learns_as_before(name: str) -> None:
    torch.manual_seed(0)
    network = COMPUTED_BIASES[name]()
    assert_converts(network, floats=True)
    model = quantization.prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig(min_bits=32, max_bits=32))
    model.set_bits(32, 32)
    x, sizes = torch.randn(4, *SHAPE), []
    for one in (network.train(), model.train()):
        (one(x) * torch.arange(FEATURES)).sum().backward()
        sizes.append(sorted(float(p.grad.norm()) for p in one.parameters() if p.grad is not None))
    assert len(sizes[0]) == len(sizes[1]) == sum(1 for _ in network.parameters())
    assert np.allclose(*sizes, rtol=1e-3, atol=1e-3)


READS: dict[str, Callable[[nn.BatchNorm2d, Tensor], Tensor]] = {
    "parameter": lambda norm, x: norm(x) * norm.weight.abs().mean(),
    "buffer": lambda norm, x: norm(x) / (norm.running_var + 1).sqrt().view(-1, 1, 1),  # type: ignore[operator]
    "attribute": lambda norm, x: functional.gelu(norm(x)) / norm.num_features,
    "functional": lambda norm, x: functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_batchnorm_can_be_read_by_other_operations(name: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            return READS[name](self.norm, x)

    assert_converts(Network(Reader()), floats=True)


MASKS: dict[str, Callable[..., Tensor]] = {
    "product": lambda x, c: x * (x > 0.2),
    "sum": lambda x, c: x + (x > 0.2),
    "a bool": lambda x, c: x * True,
    "division": lambda x, c: x / (x.ge(0.2) + 1),
    "masked_fill": lambda x, c: x.masked_fill(x < 0.1, 0.0),
    "where": lambda x, c: torch.where(x > 0.5, x, 0.1 * x),
    "steps": lambda x, c: (x > 0.2).float(),
    "positions": lambda x, c: x + x.argmax(1, keepdim=True),
}


@pytest.mark.parametrize("name", MASKS)
def test_tensors_of_other_types_are_no_numbers_known_before(name: str) -> None:
    """A product with a mask was once frozen as a square."""
    assert_converts(Network(Call(MASKS[name], 4)), floats=True)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda network: torch.compile(network, backend="eager"),  # type: ignore[return-value]
    "data parallel": nn.DataParallel,
    "average": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_wraps_a_network_is_seen_through(name: str) -> None:
    assert_converts(WRAPPERS[name](Network(nn.GELU())), floats=True)


# --- names ------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Convolutions and a Linear under given names."""

    def __init__(self, names: tuple[str, ...], activation: nn.Module) -> None:
        super().__init__()
        self.names_of_layers = names
        for name in names[:-1]:
            setattr(self, name, nn.Conv2d(3, 3, 3, padding=1))
        self.activation = activation
        self.table = nn.ModuleDict({"class": nn.Linear(3, 3), "other": nn.ReLU()})
        setattr(self, names[-1], nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names_of_layers[:-1]:
            x = self.activation(getattr(self, name)(x))
        x = self.activation(self.table["class"](x.mean((2, 3))))
        for name, module in self.table.items():
            x = module(x) if name == "other" else x
        result: Tensor = getattr(self, self.names_of_layers[-1])(x)
        return result


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()], ids=["integers", "floats"])
@pytest.mark.parametrize(
    "names",
    [
        ("update", "values", "keys", "pop", "items", "clear", "forward_", "logits"),
        ("activation_quantizers", "requantize", "network", "precision", "image"),
        ("graph", "meta", "code", "recompile", "self", "lambda", "image_codes"),
        ("relu_module", "x_codes", "activation_1", "mean_codes", "input_ids"),
    ],
    ids=lambda names: names[0],
)
def test_no_name_of_a_module_is_in_the_way(names: tuple[str, ...], activation: nn.Module) -> None:
    assert_converts(Named(names, activation), floats=isinstance(activation, nn.GELU))
