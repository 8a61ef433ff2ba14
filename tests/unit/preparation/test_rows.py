"""A network whose rows depend on each other is found by `prepare`, and computed request by request."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.errors import ConversionError, CptWarning
from cpt_deploy.export.prepared_model import export_bundle
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare


class Rows(nn.Module):
    """A Linear, and something that the rows of its result go through."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(8, 4)
        if kind in ("LSTM", "LSTM of batches"):
            self.part: nn.Module = nn.LSTM(8, 8, batch_first=kind == "LSTM of batches")
        elif kind == "attention":
            self.part = nn.TransformerEncoderLayer(8, 2, 8)
        elif kind == "no averages":
            self.part = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        if "LSTM" in self.kind:
            x = self.part(x)[0]
        elif self.kind in ("attention", "no averages"):
            x = self.part(x)
        y: Tensor = self.linear(x)
        if self.kind == "mean":
            return y - y.mean(0)
        if self.kind == "masked mean":
            return torch.cat([y - y.mean(0), torch.full_like(y, -1e9)], 1)
        if self.kind == "masked":
            return y.masked_fill(y > 0.1, -1e9)
        return y / x.shape[0] if self.kind == "number" else y


def converted(kind: str, rank: int = 2) -> QuantizedModel:
    torch.manual_seed(0)
    return prepare(Rows(kind).eval(), torch.zeros(2, *[3] * (rank - 2), 8), QuantizationConfig())


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("LSTM", 3), ("attention", 3), ("no averages", 2), ("mean", 2), ("masked mean", 2), ("number", 2)],
)
def test_rows_that_depend_on_each_other_are_found(kind: str, rank: int) -> None:
    with pytest.warns(CptWarning, match="each request will be computed by itself: .* single row|depend on each other"):
        model = converted(kind, rank)
    assert model.conversion.apart is not None


@pytest.mark.parametrize(("kind", "rank"), [("plain", 2), ("plain", 3), ("masked", 2), ("LSTM of batches", 3)])
def test_rows_that_do_not_are_joined(kind: str, rank: int) -> None:
    assert converted(kind, rank).conversion.apart is None


def test_a_bundle_of_such_a_network_takes_each_request_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Rows("mean").eval()
    with pytest.warns(CptWarning, match="the rows of 'logits' depend on each other"):
        model = prepare(network, torch.zeros(2, 8), QuantizationConfig())
    calibrate(model, [torch.randn(7, 8) for _ in range(4)])
    bundle = export_bundle(model.eval(), tmp_path / "bundle", task="tensors")
    assert not bundle.signature.joins_rows
    assert bundle.config["cpt"]["by_call"] == "the rows of 'logits' depend on each other"
    runtime = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    assert runtime.reproduce_golden(bundle.golden).reproduced
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected = network(x).numpy()
    assert np.abs(runtime.run({"image": x.numpy()})["logits"] - expected).max() < 0.1 * np.abs(expected).max()


class Compared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y @ y.T


class Stepping(nn.Linear):
    """It returns its state, and computes with its mean over all rows."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x + state.mean(0)), x + state


class Squeezed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def test_sizes_that_follow_from_the_number_of_rows_are_refused() -> None:
    said = re.escape("'logits' is (1, 1) for a single row, and (3, 3) for 3")
    with pytest.raises(ConversionError, match=said):
        prepare(Compared(8, 4), torch.zeros(2, 8), QuantizationConfig())


def test_a_single_row_has_a_batch_dimension_too() -> None:
    with pytest.raises(ConversionError, match=re.escape("of 1 sample one has the shape (4,)")):
        prepare(Squeezed(8, 4), torch.zeros(2, 8), QuantizationConfig())


def test_states_of_rows_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(ConversionError, match="rows that do not depend on each other beside states"):
        prepare(
            Stepping(8, 8),
            (torch.zeros(2, 8), torch.zeros(2, 8)),
            QuantizationConfig(),
            states=[("state", "output_1")],
        )
