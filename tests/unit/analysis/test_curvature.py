"""Hessian-vector products, eigenvalues and trace against matrices that are known, and against torch's own Hessian."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cpt_deploy.analysis.curvature import LossHessian, estimate_trace, top_eigenvalues
from cpt_deploy.analysis.directions import filter_norms
from cpt_deploy.errors import MissingExtraError, UsageError
from cpt_deploy.quantization import QuantizationConfig, prepare


def regression(samples=40, features=6, seed=0):
    """Mean squared error of a linear model: its Hessian is 2 XᵀX / N whatever the weights and targets are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(features, generator=generator, dtype=torch.float64))

    def losses():
        for rows in (slice(0, samples // 4), slice(samples // 4, samples)):  # of different sizes, so that counts count
            yield ((x[rows] @ weight - y[rows]) ** 2).mean(), len(y[rows])

    return weight, losses, (2 * x.T @ x / samples).numpy()


@given(st.integers(0, 1000))
def test_products_are_those_of_the_closed_form(seed):
    weight, losses, matrix = regression(seed=seed)
    hessian = LossHessian([weight], losses)
    vector = np.random.default_rng(seed).standard_normal(hessian.size)

    np.testing.assert_allclose(hessian.product(vector), matrix @ vector, rtol=1e-10, atol=1e-12)


def test_eigenvalues_and_trace_are_those_of_the_closed_form():
    weight, losses, matrix = regression()
    told = []
    hessian = LossHessian([weight], losses, on_product=lambda: told.append(1))

    expected = np.linalg.eigvalsh(matrix)[::-1]
    assert top_eigenvalues(hessian, 3, tolerance=1e-9) == pytest.approx(expected[:3].tolist(), rel=1e-7)
    assert told
    estimate = estimate_trace(hessian, 400)
    assert abs(estimate.mean - np.trace(matrix)) < 4 * estimate.standard_error


def test_the_trace_of_a_diagonal_matrix_needs_one_probe():
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    diagonal = torch.tensor([5.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    hessian = LossHessian([weight], lambda: [((diagonal * weight**2).sum() / 2, 1)])

    estimate = estimate_trace(hessian, 1)
    assert (estimate.mean, estimate.standard_error) == (pytest.approx(4.5), None)
    assert top_eigenvalues(hessian, 2, tolerance=1e-9) == pytest.approx([5.0, 1.0])


def test_scales_multiply_from_both_sides():
    weight, losses, matrix = regression()
    scale = torch.arange(1.0, 7.0, dtype=torch.float64)
    hessian = LossHessian([weight], losses, scales=[scale])

    expected = np.linalg.eigvalsh(np.diag(scale) @ matrix @ np.diag(scale))[-1]
    assert top_eigenvalues(hessian, tolerance=1e-9) == pytest.approx([expected], rel=1e-7)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(torch.flatten(torch.relu(self.norm(self.conv(x))), 1))


@pytest.fixture(scope="module")
def quantized():
    """A trained-looking quantized network in evaluation, with inputs and labels."""
    torch.manual_seed(0)
    model = prepare(Network(), torch.zeros(2, 1, 4, 4), QuantizationConfig(min_bits=3, max_bits=4)).double()
    x, y = torch.randn(16, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    with torch.no_grad():
        for _ in range(3):
            model(x)
    return model.eval(), x, y


def errors_kept(model, x):
    """The same network with each quantizer replaced by the addition of its rounding error of now, as plain functions.

    Returns a function of the parameters by name; autograd sees sums and products only.
    """
    network = model.network
    parameters = dict(network.named_parameters())
    quantized_weights = {
        name: getattr(network, name).quantized_weight.detach() - parameters[f"{name}.weight"].detach()
        for name in ("conv", "fc")
    }
    edge_errors = {}
    hooks = [
        quantizer.register_forward_hook(
            lambda _, args, out, name=name: edge_errors.update({name: (out - args[0]).detach()})
        )
        for name, quantizer in model.quantizers()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    order = list(edge_errors)

    def logits(values):
        weight = values["conv.weight"] + quantized_weights["conv"]
        out = functional.conv2d(x + edge_errors[order[0]], weight)
        norm = network.norm
        out = (out - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var[:, None, None] + norm.eps)
        out = out * values["norm.weight"][:, None, None] + values["norm.bias"][:, None, None]
        out = torch.flatten(torch.relu(out) + edge_errors[order[1]], 1)
        return out @ (values["fc.weight"] + quantized_weights["fc"]).T + values["fc.bias"] + edge_errors[order[2]]

    return logits


def test_products_of_a_quantized_network_keep_its_rounding_errors(quantized):
    model, x, y = quantized
    logits = errors_kept(model, x)
    parameters = dict(model.network.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]

    def smooth(flat):
        parts = flat.split(sizes)
        values = {n: part.view(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}
        return functional.cross_entropy(logits(values), y)

    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])
    loss = functional.cross_entropy(model(x), y)
    assert float(smooth(flat)) == pytest.approx(float(loss.detach()), rel=1e-9)

    expected = torch.autograd.functional.hessian(smooth, flat).numpy()
    hessian = LossHessian(model.parameters(), lambda: [(functional.cross_entropy(model(x), y), len(y))])
    found = np.stack([hessian.product(column) for column in np.eye(hessian.size)])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(found, found.T, atol=1e-12)


def test_a_network_with_scaled_filters_has_the_same_relative_curvature():
    """Scaling a layer by 4 and dividing the next one by 4 computes the same; only the relative curvature says so."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 5, dtype=torch.float64), torch.randint(0, 3, (32,))
    relative, absolute = [], []
    for factor in (1.0, 4.0):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
        with torch.no_grad():
            net[0].weight.mul_(factor)
            net[2].weight.div_(factor)
        scales = [filter_norms(parameter.detach()) for parameter in net.parameters()]
        for found, units in ((relative, scales), (absolute, None)):
            hessian = LossHessian(
                net.parameters(), lambda net=net: [(functional.cross_entropy(net(x), y), 32)], scales=units
            )
            found.append(top_eigenvalues(hessian, tolerance=1e-9)[0])

    assert relative[0] == pytest.approx(relative[1], rel=1e-6)
    assert absolute[0] != pytest.approx(absolute[1], rel=0.1)


def test_counts_out_of_range_are_refused():
    weight, losses, _ = regression()
    hessian = LossHessian([weight], losses)
    for count in (0, 6):
        with pytest.raises(UsageError, match="1 to 5 eigenvalues"):
            top_eigenvalues(hessian, count)
    with pytest.raises(UsageError, match="at least 1 probe"):
        estimate_trace(hessian, 0)


def test_without_scipy_it_is_said_what_to_install(monkeypatch):
    weight, losses, _ = regression()
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(MissingExtraError, match="SciPy") as caught:
        top_eigenvalues(LossHessian([weight], losses))
    assert caught.value.hint == "pip install '.[analysis]' in the clone of cpt-deploy"
