"""Write an ONNX file and inputs to try `cpt export --from` with; it takes any float model, and these stand for yours.

    python examples/onnx_file/make_files.py                              # model.onnx and inputs.npz
    cpt export --from model.onnx --data inputs.npz                       # → model-bundle-8bit
    cpt validate model-bundle-8bit
    cpt predict model-bundle-8bit --inputs inputs.npz
    cpt serve model-bundle-8bit

Calibration needs no labels: `inputs.npz` has an array (rows, ...) for each input of the model, by its name.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Sensors(nn.Module):
    """Two outputs from windows of sensor values: scores of a window, and a mask over its time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2), nn.ReLU())
        self.kind = nn.Linear(16, 4)
        self.mask = nn.Conv1d(16, 1, 1)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (N, 4) and a mask (N, 1, T) of values (N, 3, T)."""
        features = self.body(values)
        return self.kind(features.mean(2)), torch.sigmoid(self.mask(features))


def main(folder: str = ".") -> None:
    """Write both files; the weights are random."""
    torch.manual_seed(0)
    torch.onnx.export(
        Sensors().eval(),
        (torch.zeros(2, 3, 64),),
        str(Path(folder) / "model.onnx"),
        input_names=["values"],
        output_names=["kind", "mask"],
        dynamic_shapes={"values": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    rng = np.random.default_rng(0)
    np.savez(Path(folder) / "inputs.npz", values=rng.normal(size=(64, 3, 64)).astype(np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
