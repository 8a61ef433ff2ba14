"""Models with operations in float: captured, trained on codes and by modules, the same as the model itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare

SHAPE = (3, 16, 16)


class TokenClassifier(nn.Module):
    """Tokens to classes: embedding, a Transformer layer, mean, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.block(self.embedding(tokens)).mean(1))
        return result


def vit() -> nn.Module:
    network = VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5)
    nn.init.normal_(network.heads.head.weight)  # type: ignore[union-attr]
    return network


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5, stochastic_depth_prob=0.0)


MODELS = [(vit, SHAPE, torch.float32), (swin, SHAPE, torch.float32), (TokenClassifier, (6,), torch.int64)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, count: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, *shape) if dtype.is_floating_point else torch.randint(0, 20, (count, *shape))


@pytest.mark.parametrize(("make", "shape", "dtype"), MODELS, ids=["vit", "swin", "tokens"])
def test_float_bits_leave_the_model_as_it_is_and_codes_train_every_parameter(make, shape, dtype) -> None:
    torch.manual_seed(0)
    network, x = make().eval(), inputs(shape, dtype)
    exact = prepare(network, torch.zeros(2, *shape, dtype=dtype), QuantizationConfig(min_bits=32, max_bits=32)).eval()
    assert torch.allclose(exact(x), network(x), atol=1e-5)
    model = prepare(network, torch.zeros(2, *shape, dtype=dtype), QuantizationConfig()).train()
    assert len(model.layers()) == sum(
        isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding) for m in network.modules()
    ) + (sum(isinstance(m, nn.MultiheadAttention) for m in network.modules()))
    model.set_bits(4, 8)
    model(x).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    calibrate(model, [x])
    model.eval()
    model.set_bits(8, 8)
    difference = (model(x) - network(x)).norm() / network(x).norm()
    assert difference < 0.1


@pytest.mark.parametrize(("make", "shape", "dtype"), MODELS, ids=["vit", "swin", "tokens"])
def test_a_step_on_codes_computes_what_the_modules_compute(make, shape, dtype) -> None:
    torch.manual_seed(0)
    model, x = prepare(make(), torch.zeros(2, *shape, dtype=dtype), QuantizationConfig()).train(), inputs(shape, dtype)
    results = []
    for compute in ("modules", "float32"):
        model.compute = compute
        results.append(model(x))
    assert torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


class Resized(nn.Module):
    """Its maps get the size of the input; a pool can leave a single pixel, which torch treats as a special case."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.conv(functional.max_pool2d(x, 2)).cos(), size=x.shape[2:])


def test_free_sizes_that_are_not_possible_are_said_with_their_reason() -> None:
    free = {2: Dim("height"), 3: Dim("width")}
    with pytest.raises(ConversionError, match=r"size in dynamic_shapes is possible: not all values of .* // 2"):
        prepare(Resized(), torch.zeros(2, *SHAPE), QuantizationConfig(), dynamic_shapes=free)
