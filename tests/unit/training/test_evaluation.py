import numpy as np
import pytest
import torch
from torch import nn

from cpt_deploy.quantization import QuantizationConfig, prepare
from cpt_deploy.training.evaluation import evaluate

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 7))
    prepared = prepare(network, torch.zeros(2, 1, 8, 8), QuantizationConfig(min_bits=3, max_bits=8, ends="scheduled"))
    prepared(torch.randn(32, 1, 8, 8))
    return prepared


def batches(*counts):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(count, 1, 8, 8, generator=generator), torch.randint(7, (count,), generator=generator))
        for count in counts
    ]


def test_result_is_that_of_plain_numpy(model):
    data = batches(10, 10, 3)

    result = evaluate(model, data, classes=7, device=CPU, step=5)

    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in data]).double().numpy()
    labels = torch.cat([y for _, y in data]).numpy()
    order = np.argsort(-logits, axis=1, kind="stable")
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(23), labels]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(order[:, 0] == labels), abs=1e-6)
    assert result.metrics["top5"] == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(axis=1)), abs=1e-6)
    assert result.loss == pytest.approx(loss.mean(), rel=1e-5)
    assert (result.step, result.samples) == (5, 23)


def test_evaluation_is_at_the_upper_bound_and_leaves_mode_and_bits(model):
    data = batches(12)
    model.set_bits(8, 8)
    expected = evaluate(model, data, classes=7, device=CPU, step=0)
    model.set_bits(3, 6)
    model.train()

    result = evaluate(model, data, classes=7, device=CPU, step=0)

    assert (result.loss, result.metrics["accuracy"]) == (expected.loss, expected.metrics["accuracy"])
    assert model.training
    assert model.precision.weight_bits["scheduled"] == 3
    assert model.precision.gradient_bits == 6


def test_top5_needs_more_than_five_classes():
    network = prepare(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), torch.zeros(2, 1, 8, 8), QuantizationConfig())
    data = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 4]))]

    assert "top5" not in evaluate(network, data, classes=5, device=CPU, step=0).metrics


def test_evaluation_gives_up_when_told(model):
    model.train()

    assert evaluate(model, batches(4, 4), classes=7, device=CPU, step=0, stop=lambda: True) is None
    assert model.training
