"""Networks of many kinds from `prepare` to onnxruntime: what converts, and what is refused before training."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torch.nn.utils import prune

from cpt_deploy import preparation, quantization
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError, DataError, UsageError
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.graph import IntegerGraph, Quantize
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate

SHAPE = (3, 8, 8)
FEATURES = 6


class Network(nn.Module):
    """Two convolutions, a mean and a Linear; the parts stand on positions, on features, and on the results."""

    def __init__(
        self, positions: nn.Module | None = None, features: nn.Module | None = None, results: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, FEATURES, 3, padding=1), nn.BatchNorm2d(FEATURES), nn.ReLU())
        self.positions = positions or nn.Identity()
        self.second = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.features = features or nn.Identity()
        self.head = nn.Linear(FEATURES, FEATURES)
        self.results = results or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.positions(self.first(x)))
        result: Tensor = self.results(self.head(self.features(x.mean((2, 3)))))
        return result


class Call(nn.Module):
    """What a function computes of a tensor and of a buffer with one number for each channel."""

    def __init__(self, function: Callable[..., Tensor], rank: int) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constants", torch.linspace(-0.8, 1.2, FEATURES).reshape(-1, *[1] * (rank - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constants)


def prepared(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> QuantizedModel:
    return preparation.prepare(network, torch.zeros(2, *shape), QuantizationConfig())


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


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_convert_alone_and_behind_a_layer(name: str) -> None:
    make, floats = NORMS[name]
    network = Network(make())
    network.first[1] = make()
    assert_converts(network, floats=floats)


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


# --- what cannot be deployed is refused before training ---------------------------------------------------------------


def test_what_freezing_or_writing_refuses_is_refused_by_prepare() -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)  # ONNX has no such operator

    network = Network(features=Bessel())
    assert isinstance(quantization.prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig()), QuantizedModel)
    with pytest.raises(ConversionError, match="bessel_j0"):
        prepared(network)


def test_a_network_of_integers_that_cannot_be_deployed_is_tried_with_operations_in_float() -> None:
    tried: list[bool] = []

    def trial(model: QuantizedModel) -> None:
        tried.append(any(node.meta.get("is_float") for node in model.network.graph.nodes))
        if not tried[-1]:
            raise ConversionError("no integers today")

    model = quantization.prepare(Network(), torch.zeros(2, *SHAPE), QuantizationConfig(), trial=trial)
    assert tried == [False, True]
    assert any(node.meta.get("is_float") for node in model.network.graph.nodes)


def test_a_function_that_onnxruntime_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `avg_pool2d` with windows that are cut, whose divisors onnxruntime takes from elsewhere."""
    monkeypatch.setattr("cpt_deploy.integer.lowering.float_parts.needs_factors", lambda node: False)
    with pytest.raises(ConversionError, match="differ by"):
        prepared(Network(nn.AvgPool2d(3, 2, ceil_mode=True)))


def test_the_trial_leaves_no_trace() -> None:
    torch.manual_seed(0)
    network = Network(nn.Dropout(0.5), nn.BatchNorm1d(FEATURES)).train()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(1)
    random.seed(1)
    plain = quantization.prepare(network, torch.zeros(2, *SHAPE), QuantizationConfig())
    after = torch.rand(1)
    torch.manual_seed(1)
    model = prepared(network)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in model.modules()] == [module.training for module in plain.modules()]


def test_a_part_that_is_dead_with_random_inputs_is_not_refused() -> None:
    assert isinstance(prepared(Network(Call(lambda x, c: functional.gelu(x) * 0, 4))), QuantizedModel)


class Outputs(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.make = Network(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.network(x))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda y: [y, y * 2, y + 1], ["output_0", "output_1", "output_2"]),
        (lambda y: {"out": functional.gelu(y), "aux": y * 2}, ["out", "aux"]),
        (lambda y: {"logits": y}, ["logits"]),
    ],
)
def test_outputs_have_the_names_of_their_places(make: Callable[[Tensor], Any], names: list[str]) -> None:
    model = prepared(Outputs(make)).eval()
    assert [tensor.name for tensor in model.signature.outputs] == names
    assert type(model(torch.randn(2, *SHAPE))) is type(make(torch.zeros(1)))


def test_inputs_that_are_missing_are_named() -> None:
    class Masked(Network):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * mask)

    with pytest.raises(ConversionError, match="takes x, mask") as error:
        prepared(Masked())
    assert "in a tuple" in str(error.value.hint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda network: network.double(), "'first.0.weight' is in torch.float64"),
        (lambda network: network.to("meta"), "'first.0.weight' has none"),
        (lambda network: network.head.bias.data.fill_(float("nan")), "'head.bias' has NaN"),
    ],
)
def test_parameters_that_are_no_numbers_in_float32_are_refused_by_name(
    change: Callable[[Network], Any], said: str
) -> None:
    network = Network()
    change(network)
    with pytest.raises(ConversionError, match=said):
        prepared(network)


def test_a_prepared_model_is_not_prepared_again() -> None:
    with pytest.raises(ConversionError, match="prepared already"):
        prepared(nn.Sequential(prepared(Network())))


IMAGE = torch.zeros(2, *SHAPE)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (SHAPE, "a tensor, a tuple of tensors or a dictionary"),
        ("3", "a tensor, a tuple of tensors or a dictionary"),
        ((), "a tensor, a tuple of tensors or a dictionary"),
        (torch.tensor(1.0), "batch dimension first"),
        (torch.zeros(0, *SHAPE), "no empty one"),
        (IMAGE.double(), "float64"),
        ((IMAGE, IMAGE[:1]), "one batch size"),
    ],
)
def test_example_inputs_are_tensors_of_one_batch(inputs: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        quantization.prepare(Network(), inputs, QuantizationConfig())


@pytest.mark.parametrize("inputs", [(IMAGE, IMAGE), {"picture": IMAGE}, {}.fromkeys(("x", "y"), IMAGE)])
def test_a_network_takes_the_example_inputs(inputs: Any) -> None:
    with pytest.raises(ConversionError, match=r"Network\.forward takes x"):
        quantization.prepare(Network(), inputs, QuantizationConfig())


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({2: "height"}, "with a name"),
        ({2: Dim.AUTO}, "with a name"),
        ({7: Dim("height")}, "by axes"),
        (({2: Dim("height")}, None), "for 1 inputs"),
        ({"y": {2: Dim("height")}}, "some of 'y'"),
        ({2: 3 * Dim("height")}, "has size 8"),
        ({2: Dim("height", min=9)}, "has size 8"),
        ({2: Dim("side"), 3: 2 * Dim("side")}, "side = 8"),
    ],
)
def test_free_dimensions_have_names_and_fit(shapes: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        quantization.prepare(Network(), IMAGE, QuantizationConfig(), dynamic_shapes=shapes)


def test_a_model_is_called_with_the_arguments_that_it_was_prepared_with() -> None:
    model = quantization.prepare(Network(), IMAGE, QuantizationConfig(min_bits=32, max_bits=32)).eval()
    assert torch.equal(model(IMAGE), model(x=IMAGE))
    for arguments, named in (((), {}), ((IMAGE, IMAGE), {}), ((), {"y": IMAGE}), ((IMAGE,), {"x": IMAGE})):
        with pytest.raises(UsageError, match="Expected the inputs x"):
            model(*arguments, **named)


@pytest.mark.parametrize("step", [1.5, None, "1", True])
def test_steps_are_whole_numbers(step: Any) -> None:
    with pytest.raises(UsageError, match="number of a training step"):
        quantization.prepare(Network(), torch.zeros(2, *SHAPE), QuantizationConfig()).set_step(step)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_an_empty_batch_is_refused_in_training() -> None:
    model = quantization.prepare(Network(), torch.zeros(2, *SHAPE), QuantizationConfig()).train()
    with pytest.raises(DataError, match="at least 1 sample"):
        model(torch.zeros(0, *SHAPE))


def test_calibration_takes_what_a_dataloader_yields() -> None:
    images, labels = torch.randn(9, *SHAPE), torch.arange(9)
    expected: dict[str, Tensor] | None = None
    pairs = list(zip(images, labels, strict=True))
    for data in (
        [images[:4], images[4:8], images[8:]],
        torch.utils.data.DataLoader(pairs, batch_size=4),  # type: ignore[arg-type]
        torch.utils.data.DataLoader([{"pixels": x, "label": y} for x, y in pairs], batch_size=4),  # type: ignore[arg-type]
    ):
        torch.manual_seed(0)
        model = quantization.prepare(
            Network(features=nn.BatchNorm1d(FEATURES)), torch.zeros(2, *SHAPE), QuantizationConfig()
        )
        assert calibrate(model, data) == 2  # the last batch of one is added to the one before it
        expected = expected or model.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(4, 1, 8, 8), r"\(N, 3, 8, 8\), but got a tensor \(4, 1, 8, 8\)"),
        ((torch.arange(4), torch.zeros(4, *SHAPE)), "tuple of a tensor"),
        ({"a": torch.zeros(4, *SHAPE), "b": torch.zeros(4, *SHAPE)}, "dictionary of a: a tensor"),
        (["image.png"], "list of a str"),
        (torch.full((4, *SHAPE), float("nan")), "finite inputs"),
        (torch.zeros(4, *SHAPE, dtype=torch.uint8), "bytes"),
        (torch.zeros(1, *SHAPE), "at least 2 samples"),
    ],
)
def test_batches_that_a_model_does_not_take_are_said(batch: Any, said: str) -> None:
    model = quantization.prepare(
        Network(features=nn.BatchNorm1d(FEATURES)), torch.zeros(2, *SHAPE), QuantizationConfig()
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=said):
        calibrate(model, [batch])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_step_on_one_sample_is_refused_only_where_a_batchnorm_needs_more() -> None:
    model = quantization.prepare(
        Network(features=nn.BatchNorm1d(FEATURES)), torch.zeros(2, *SHAPE), QuantizationConfig()
    ).train()
    with pytest.raises(DataError, match="at least 2 samples") as error:
        model(torch.randn(1, *SHAPE))
    assert "drop_last" in str(error.value.hint)
    assert (
        quantization.prepare(Network(), torch.zeros(2, *SHAPE), QuantizationConfig())
        .train()(torch.randn(1, *SHAPE))
        .shape[0]
        == 1
    )
