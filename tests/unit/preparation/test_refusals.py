"""What `prepare` refuses before training, the names of outputs, and the batches that a prepared model takes."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from cpt_deploy import quantization
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError, DataError, UsageError
from cpt_deploy.integer import freeze
from cpt_deploy.onnx_graph import float_forms
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.preparation import prepare
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate
from cpt_deploy.quantization.graph.signature import Example
from tests.unit.preparation.networks import FEATURES, SHAPE, Call, Network, prepared


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

    def trial(model: QuantizedModel, example: Example) -> None:
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


def test_averages_with_cut_windows_are_refused_where_sizes_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.AvgPool2d(4, ceil_mode=True), nn.Conv2d(6, 4, 1)
    )
    sizes = {2: 2 * Dim("height", min=2, max=16), 3: 2 * Dim("width", min=2, max=16)}
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ConversionError, match=r"ceil_mode.*avg_pool2d.*'2'"):
        prepare(network, x, QuantizationConfig(), dynamic_shapes=sizes)
    # The factors of the example, one for the only window, fit any size: the trial has to compare shapes.
    monkeypatch.setattr("cpt_deploy.integer.lowering.float_parts.has_free_positions", lambda node: False)
    with pytest.raises(ConversionError, match="has the shape"):
        prepare(network, x, QuantizationConfig(), dynamic_shapes=sizes)


def test_the_trial_has_the_integers_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            bounded = tokens.clamp(max=4).to(torch.float32)
            result: Tensor = self.head(self.embedding(tokens).mean(1) + bounded.mean(1, keepdim=True))
            return result

    tokens = torch.arange(20).reshape(2, 10) % 10
    prepare(Bounded(), tokens, QuantizationConfig())
    monkeypatch.setitem(float_forms._FORMS, "aten.clamp.default", lambda x, *bounds, **options: x)  # as up to 4
    with pytest.raises(ConversionError, match="differ by"):
        prepare(Bounded(), tokens.flip(0), QuantizationConfig())


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


class Sampled(nn.Module):
    """Results with the names that operators before them have in PyTorch's exporter, and an input with one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mean, self.spread = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, gelu: Tensor) -> dict[str, Tensor]:
        hidden = functional.gelu(self.first(x) * gelu).mean(1)
        return {"mean": self.mean(hidden), "mul": self.spread(hidden), "val_0": hidden.exp()}


def test_results_may_have_the_names_of_operators() -> None:
    torch.manual_seed(0)
    x, factor = torch.randn(6, 4, 5), torch.rand(6, 4, 1)
    network = Sampled().eval()
    model = prepare(network, (x, factor), QuantizationConfig())
    calibrate(model, [(x, factor)])
    session = open_session(write_onnx(freeze(model.eval())))
    names = ["mean", "mul", "val_0"]
    assert [output.name for output in session.get_outputs()] == names
    got = dict(zip(names, session.run(names, {"x": x.numpy(), "gelu": factor.numpy()}), strict=True))
    with torch.no_grad():
        for name, expected in network(x, factor).items():
            assert np.allclose(got[name], expected, atol=0.05 * float(expected.abs().max())), name


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
        (lambda network: network.second.weight.data[0].fill_(-float("inf")), "'second.weight' has infinite values"),
        (lambda network: network.first[1].running_mean[1].fill_(float("nan")), "'first.1.running_mean' has NaN"),
        (lambda network: network.first[1].running_var[2].fill_(-0.5), "'first.1.running_var' has negative values"),
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
        (({"x": torch.zeros(2, *SHAPE)},), r"^[^\n]*but got one with dict inside$"),
        (torch.tensor(1.0), "batch dimension first"),
        (torch.zeros(0, *SHAPE), "none is empty"),
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
