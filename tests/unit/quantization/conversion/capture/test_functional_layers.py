"""Products with parameters outside of layers, computed weights and older hooks: names, sharing, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, prepare
from cpt_deploy.quantization.conversion.activation_quantizers import has_float_operations
from cpt_deploy.quantization.modules.layers import QuantizedLayer


class Written(nn.Module):
    """A network whose forward is a function of itself and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Parameter | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def prepared(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> QuantizedModel:
    return prepare(network, torch.zeros(2, *shape, dtype=dtype), QuantizationConfig())


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def test_layers_have_the_names_of_their_parameters_and_nothing_is_held_twice() -> None:
    inner = Written(lambda s, x: functional.linear(x, s.weight), weight=weights(6, 4))
    network = Written(
        lambda s, x: s.inner(x).relu() @ s.head + s.bias, inner=inner, head=weights(6, 3), bias=weights(3)
    )
    model = prepared(network, (4,))
    assert [layer.name for layer in model.layers()] == ["inner", "head_linear"]
    parameters = [name for name, _ in model.named_parameters()]
    assert parameters == [
        "network.inner.weight", "network.head_linear.bias", "network.head_linear.weight_of.original"
    ]  # fmt: skip


def test_one_parameter_read_by_several_products_is_one_parameter() -> None:
    """A decoder that shares its encoder's weight, and a product that is computed twice."""
    network = Written(lambda s, x: functional.linear((x @ s.w).relu(), s.w), w=weights(6, 9))
    model = prepared(network, (6,))
    assert len(model.layers()) == 2
    assert len(list(model.parameters())) == 1
    twice = Written(lambda s, x: functional.linear(functional.linear(x, s.w, s.b).relu(), s.w, s.b), w=weights(6, 6),
                    b=weights(6))  # fmt: skip
    assert [layer.macs for layer in prepared(twice, (6,)).layers()] == [72]


def test_a_table_outside_of_layers_is_an_embedding_that_a_decoder_may_share() -> None:
    network = Written(
        lambda s, x: functional.linear(functional.embedding(x, s.table).mean(1), s.table), table=weights(11, 6)
    )
    model = prepared(network, (7,), torch.int64)
    assert [(layer.name, layer.macs) for layer in model.layers()] == [("table_embedding", 0), ("table_linear", 66)]
    assert len(list(model.parameters())) == 1


def test_a_layer_that_is_called_and_whose_weight_is_read_keeps_its_own_geometry() -> None:
    network = Written(lambda s, x: (functional.conv2d(x, s.conv.weight, stride=2) + s.conv(x)).mean([2, 3]),
                      conv=nn.Conv2d(3, 4, 3, 2, bias=False))  # fmt: skip
    x = torch.randn(2, 3, 9, 9)
    model = prepare(network, torch.zeros(2, 3, 9, 9), QuantizationConfig(min_bits=32, max_bits=32)).eval()
    assert len(model.layers()) == 2
    assert torch.allclose(model(x), network(x), atol=1e-5)


def test_a_buffer_is_a_weight_that_is_not_trained() -> None:
    network = Written(
        lambda s, x: functional.conv2d(s.conv(x), s.kernel, groups=4).mean([2, 3]), conv=nn.Conv2d(3, 4, 3)
    )
    network.register_buffer("kernel", torch.full((4, 1, 3, 3), 1 / 9))
    model = prepared(network, (3, 9, 9)).train()
    model(torch.randn(4, 3, 9, 9)).sum().backward()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert trained == {"network.conv.weight": True, "network.conv.bias": True, "network.kernel_conv2d.weight": False}


@pytest.mark.filterwarnings("ignore:each request will be computed by itself")
@pytest.mark.parametrize("inputs", ["computed weight", "grouped by the batch"])
def test_what_is_no_product_with_parameters_stays_in_float(inputs: str) -> None:
    if inputs == "computed weight":  # of the input: nothing to quantize once
        network = Written(lambda s, x: s.a(x) @ functional.linear(x, s.a.weight).t() @ s.a(x), a=nn.Linear(6, 5))
    else:
        network = Written(lambda s, x: s.a(x).softmax(1) * s.g, a=nn.Linear(6, 5), g=weights(5))
    model = prepared(network, (6,))
    assert has_float_operations(model.network)


# --- computed weights -------------------------------------------------------------------------------------------------


def small(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def test_what_is_pruned_stays_pruned_while_training_goes_on() -> None:
    network = small(nn.Conv2d(3, 8, 3))
    prune.l1_unstructured(network[0], "weight", 0.6)
    mask = network[0].weight_mask.clone()
    model = prepared(network, (3, 9, 9)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(4):
        model.set_step(step)
        functional.cross_entropy(model(torch.randn(8, 3, 9, 9)), torch.arange(8) % 5).backward()
        optimizer.step()
    layer = model.network.get_submodule("0")
    assert isinstance(layer, QuantizedLayer)
    assert torch.equal(layer.float_weight == 0, mask == 0)
    assert not torch.allclose(layer.float_weight, network[0].weight)


def test_the_network_with_its_hooks_is_left_as_it_was() -> None:
    network = small(nn.Conv2d(3, 8, 3))
    prune.random_unstructured(network[0], "weight", 0.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, 9, 9)
    expected = network(x)
    prepared(network, (3, 9, 9))
    assert {
        name: bool(torch.equal(value, before[name])) for name, value in network.state_dict().items()
    } == dict.fromkeys(["0.bias", "0.weight_orig", "0.weight_mask", "4.weight", "4.bias"], True)
    assert prune.is_pruned(network)
    assert torch.equal(network(x), expected)
    prune.remove(network[0], "weight")


def test_spectral_norm_goes_on_with_its_iteration() -> None:
    """One iteration a step, on every path, and none by looking at the model."""
    model = prepared(small(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))), (3, 9, 9)).train()
    vectors = [copy.deepcopy(model).network.get_submodule("0.weight_of.0")._u]
    for compute in ("float32", "modules"):
        each = copy.deepcopy(model)
        each.compute = compute  # type: ignore[assignment]
        each(torch.randn(4, 3, 9, 9))
        vectors.append(each.network.get_submodule("0.weight_of.0")._u)
    assert torch.equal(vectors[1], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])


def older_spectral_norm() -> nn.Module:
    return small(torch.nn.utils.spectral_norm(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize(
    ("build", "named", "hint"),
    [
        (older_spectral_norm, "module '0'", "remove_spectral_norm"),
        (
            lambda: nn.Sequential(small(parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))), nn.Softmax(1), nn.GELU()),
            "module '0.0'",
            "remove_parametrizations",
        ),
    ],
    ids=["older hook", "in float parts"],
)
def test_what_cannot_go_on_names_the_layer_and_what_to_do(
    build: Callable[[], nn.Module], named: str, hint: str
) -> None:
    with pytest.raises(ConversionError, match=named) as caught:
        prepared(build(), (3, 9, 9))
    assert hint in str(caught.value.hint)


def test_the_same_padding_of_timm_is_integers_from_end_to_end() -> None:
    layers = pytest.importorskip("timm.layers", reason="needs timm: pip install '.[timm]'")
    network = nn.Sequential(
        layers.Conv2dSame(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), layers.StdConv2dSame(8, 8, 4, stride=2),
        *small(layers.ScaledStdConv2d(8, 8, 3, padding=1)),
    )  # fmt: skip
    x = torch.randn(2, 3, 13, 12)
    model = prepare(network, torch.zeros(2, 3, 13, 12), QuantizationConfig(min_bits=32, max_bits=32)).eval()
    assert not has_float_operations(model.network)
    assert [layer.name for layer in model.layers()] == ["0", "3", "4", "8"]
    assert torch.allclose(model(x), network.eval()(x), atol=1e-5)


class Normalised(nn.Module):
    """A convolution whose BatchNorm is a function of tensors that the module holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.factor, self.shift = nn.Parameter(torch.rand(4) + 0.5), weights(4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return functional.batch_norm(x, self.mean, self.variance, self.factor, self.shift, self.training, 0.2, 1e-4)


@pytest.mark.parametrize("wrap", [nn.Identity, nn.Sequential])
def test_statistics_outside_of_a_batch_norm_are_trained_as_in_the_network(wrap: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    network = Normalised()
    given = network if wrap is nn.Identity else wrap(network)
    model, x = prepared(given, (3, 8, 8)), torch.randn(4, 3, 8, 8)
    held = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.dim()]
    assert len(held) == len({*held})
    with torch.no_grad():
        network.train()(x)
        model.train()(x)
    kept = {name.rpartition(".")[2]: tensor for name, tensor in model.named_buffers() if "running" in name}
    # the statistics are of quantized convolutions here
    torch.testing.assert_close(kept["running_mean"], network.mean, atol=0.01, rtol=0.05)
    torch.testing.assert_close(kept["running_var"], network.variance, atol=0.01, rtol=0.05)
