"""Products of codes: which path a processor takes, and that the paths give the same integers."""

import pytest
import torch
from torch import Tensor, nn

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.quantization.kernels import QuantizationParameters
from cpt_deploy.quantization.kernels.reference import TorchKernels
from cpt_deploy.quantization.training_step import products
from cpt_deploy.quantization.training_step.products import choose_compute, int8_is_exact


def test_auto_is_the_fastest_that_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_bf16_units", lambda *_: True)
    assert choose_compute("auto", native=True) == "bf16"
    assert choose_compute("auto", native=False) == "modules"
    monkeypatch.setattr(products, "has_bf16_units", lambda *_: False)
    assert choose_compute("auto", native=True) == "float32"
    with pytest.raises(UsageError, match="bfloat16 units"):
        choose_compute("bf16", native=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zero_point", [0, 77, 255])
def test_int8_and_float32_products_of_codes_are_equal(
    monkeypatch: pytest.MonkeyPatch, zero_point: int, bias: bool
) -> None:
    if not int8_is_exact():
        pytest.skip("this processor has no exact int8 products")
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Linear(512, 300, bias=bias)), torch.zeros(2, 512), QuantizationConfig())
    layer = model.get_submodule("network.0")
    codes = torch.randint(0, 256, (64, 512), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (300, 512), dtype=torch.int8)
    qparams = qparams_with(zero_point)
    gradient = torch.randint(-200, 56, (64, 300)).bfloat16()
    scaled = torch.randn(300, 512)

    def results() -> list[Tensor]:
        kernels = TorchKernels()
        forward = products.forward_product(layer, codes, qparams, weight, kernels)
        return [forward, products.backward_products(layer, gradient, codes, qparams, scaled, kernels, inward=False)[1]]

    exact = (codes.double() - zero_point) @ weight.double().t(), gradient.double().t() @ (codes.double() - zero_point)
    int8 = results()
    monkeypatch.setattr(products, "int8_is_exact", lambda: False)
    assert torch.equal(int8[0].double(), exact[0])
    assert torch.equal(results()[0].double(), exact[0])
    assert torch.allclose(int8[1].double(), exact[1], rtol=1e-6)


def qparams_with(zero_point: int) -> QuantizationParameters:
    return QuantizationParameters(torch.tensor(0.1), torch.tensor(float(zero_point)), torch.tensor(255.0))
