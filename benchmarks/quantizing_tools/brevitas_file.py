"""Brevitas' QCDQ export of two quantized convolutions and a classifier, which it has as modules of its own."""

import brevitas.nn as qnn
import torch
from brevitas.export import export_onnx_qcdq
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Int32Bias, Uint8ActPerTensorFloat
from network import FOLDER, batches, images
from torch import nn


class Quantized(nn.Module):
    """The network as Brevitas writes it."""

    def __init__(self) -> None:
        super().__init__()
        layer = {"weight_quant": Int8WeightPerChannelFloat, "bias_quant": Int32Bias}
        ends = {"act_quant": Uint8ActPerTensorFloat, "return_quant_tensor": True}
        self.image = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
        self.first, self.relu = qnn.QuantConv2d(3, 16, 3, padding=1, **layer), qnn.QuantReLU(**ends)
        self.second, self.relu2 = qnn.QuantConv2d(16, 16, 3, padding=1, **layer), qnn.QuantReLU(**ends)
        self.pooled = qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True)
        self.classes = qnn.QuantLinear(16, 10, bias=True, **layer)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10)."""
        x = self.relu2(self.second(self.relu(self.first(self.image(image)))))
        return self.classes(self.pooled(torch.flatten(nn.functional.adaptive_avg_pool2d(x.value, 1), 1)))


torch.manual_seed(0)
model = Quantized().train()
for batch in batches():
    model(torch.from_numpy(batch))
export_onnx_qcdq(
    model.eval(),
    torch.from_numpy(images()[:1]),
    export_path=str(FOLDER / "brevitas.onnx"),
    opset_version=17,
    dynamo=False,
    input_names=["image"],
    output_names=["logits"],
    dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
)
