"""Files of onnxruntime's own quantizer: static as Q/DQ pairs and as operators, with other types, and dynamic."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from network import FLOAT, FOLDER, batches, network, to_onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

Array = npt.NDArray[Any]
UINT8, INT8 = QuantType.QUInt8, QuantType.QInt8


class Reader(CalibrationDataReader):
    """Feeds arrays for one input."""

    def __init__(self, name: str, arrays: Iterable[Array]) -> None:
        self._name, self._arrays = name, iter(arrays)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next call's inputs."""
        array = next(self._arrays, None)
        return None if array is None else {self._name: array}


class TextNetwork(nn.Module):
    """A Transformer layer and an LSTM on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.attention = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.recurrent, self.classes = nn.LSTM(32, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (N, T, 5) of tokens (N, T)."""
        return self.classes(self.recurrent(self.attention(self.embedding(tokens)))[0])


def static(source: Path, name: str, reader: Reader, **settings: Any) -> None:
    """Quantize with calibration."""
    types = {"activation_type": UINT8, "weight_type": INT8, "quant_format": QuantFormat.QDQ, "per_channel": True}
    quantize_static(source, FOLDER / name, reader, **(types | settings))


to_onnx(network(), FLOAT.name)
prepared = FOLDER / "prepared.onnx.part"
quant_pre_process(FLOAT, prepared)
for name, settings in {
    "static-qdq": {},
    "static-operators": {"quant_format": QuantFormat.QOperator, "per_channel": False},
    "static-uint8-weights": {"weight_type": UINT8, "per_channel": False},
    "static-int8-activations": {"activation_type": INT8},
}.items():
    static(prepared, f"{name}.onnx", Reader("image", batches()), **settings)
quantize_dynamic(prepared, FOLDER / "dynamic.onnx", weight_type=INT8)

torch.manual_seed(0)
tokens = np.random.default_rng(0).integers(0, 50, (16, 12))
dims = ({0: torch.export.Dim("N"), 1: torch.export.Dim("T", min=2, max=64)},)
text = FOLDER / "text.onnx.part"
names = {"input_names": ["tokens"], "output_names": ["logits"]}
example = (torch.from_numpy(tokens[:2]),)
torch.onnx.export(TextNetwork().eval(), example, text, dynamic_shapes=dims, dynamo=True, external_data=False, **names)
quant_pre_process(text, prepared, skip_symbolic_shape=True)
static(prepared, "text-static-qdq.onnx", Reader("tokens", np.split(tokens, 4)))
quantize_dynamic(prepared, FOLDER / "text-dynamic.onnx", weight_type=INT8)
