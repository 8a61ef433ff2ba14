"""Small networks whose files have shape arithmetic on the batch, written by both exporters of torch.onnx."""

import io
import warnings

import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

SIZE, CLASSES = 32, 5


class Repeating(nn.Module):
    """Uses the batch in expand, zeros, arange, repeat and where, and as the batch of a state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(16, 5)
        self.token = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.state = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.conv(x).relu()
        x = torch.cat([x, self.token.expand(batch, 8, x.shape[2], x.shape[3])], 1)
        zeros = torch.zeros(batch, 16, 2, 2) + x[:, :, :2, :2]
        ranges = torch.arange(batch).float().mul(0).view(batch, 1, 1, 1).expand(batch, 16, 2, 2)
        x = torch.cat([zeros, ranges + self.token.repeat(batch, 2, 2, 2)], 2)
        x = torch.where(torch.ones(batch, 16, 4, 2) > 0.5, x, torch.zeros(batch, 16, 4, 2))
        states = self.state.expand(1, batch, 8).contiguous(), torch.zeros(1, batch, 8)
        steps, _ = self.lstm(x.flatten(2).permute(0, 2, 1)[..., :8], states)
        result: Tensor = self.head(x.mean((2, 3))) + steps.mean((1, 2))[:, None]
        return result


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    match name:
        case "vit":
            network: nn.Module = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5)
        case "swin":
            network = SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=5)
        case "convnext":
            network = ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=5)
        case _:
            network = Repeating()
    for parameter in network.parameters():
        if not parameter.any():  # the last layer of a transformer begins with zeros
            nn.init.normal_(parameter, 0, 0.1)
    return network.eval()


def written(name: str, batch: int | None, *, dynamo: bool = False) -> bytes:
    """Return the file of a network for a number of images, or for any number."""
    file, images = io.BytesIO(), torch.rand(batch or 2, 3, SIZE, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = None if batch else ({0: torch.export.Dim("N")},)
            torch.onnx.export(_network(name), (images,), file, dynamo=True, verbose=False, dynamic_shapes=free)
        else:
            axes = None if batch else {"x": {0: "N"}}
            torch.onnx.export(
                _network(name), (images,), file, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
            )
    return file.getvalue()
