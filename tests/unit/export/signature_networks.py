"""Small networks of several inputs and outputs, and of free sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class ImageAndVector(nn.Module):
    """An image and facts about it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.facts = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
        self.head = nn.Linear(14, 4)

    def forward(self, photo: Tensor, facts: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat((self.features(photo), self.facts(facts)), 1))
        return result


class Siamese(nn.Module):
    """Two images through the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(3, 8, 2), _block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.features(left), self.features(right)
        return self.head(a + b), a


class Heads(nn.Module):
    """One backbone, results in a dictionary that holds a tuple, and None."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(_block(3, 8, 2), _block(8, 8))
        self.classes, self.boxes = nn.Linear(8, 5), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.backbone(x)
        pooled = features.mean((2, 3))
        return {"scores": self.classes(pooled), "boxes": (self.boxes(features), pooled), "loss": None}


@dataclass
class Found:
    """What a detector returns."""

    score: Tensor
    mask: Tensor


class Detector(nn.Module):
    """Results in a dataclass; GELU stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = _block(3, 8, 2), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU())
        self.score, self.mask = nn.Linear(8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Found:
        features = self.body(self.stem(x))
        return Found(self.score(features.mean((2, 3))), self.mask(features))


class Rated(NamedTuple):
    rating: Tensor
    liked: Tensor


class Recommender(nn.Module):
    """Ids of a user and an item, and numbers about both."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, 6), nn.Embedding(20, 6)
        self.hidden = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.rating, self.liked = nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, ids: Tensor, *, numbers: Tensor) -> Rated:
        pair = torch.cat((self.user(ids[:, 0]), self.item(ids[:, 1]), numbers), 1)
        hidden = self.hidden(pair)
        return Rated(self.rating(hidden), self.liked(hidden))


class Encoder(nn.Module):
    """A text classifier as BERT is: ids, a mask of padding, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(32, 16)
        self.norm, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.queries, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        length = input_ids.shape[1]
        x = self.norm(self.words(input_ids) + self.places(torch.arange(length, device=input_ids.device)))
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.queries(x).chunk(3, -1))
        hidden = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
        weights = ((q @ k.transpose(-1, -2)) / 8**0.5 + hidden).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = self.after(x + self.down(functional.gelu(self.up(x))))
        return {"logits": self.head(x[:, 0]), "last_hidden_state": x}


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip connection; all with integers, at sizes that are even."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = _block(3, 6), _block(6, 8, 2)
        self.up, self.last = nn.ConvTranspose2d(8, 6, 2, 2), _block(12, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        up = self.up(self.down(first))
        result: Tensor = self.head(self.last(torch.cat((up, first), 1)))
        return result


class Segmentation(nn.Module):
    """A head that is brought to the size of the image, in float, beside a class of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(_block(3, 8, 2), _block(8, 8))
        self.masks, self.classes = nn.Conv2d(8, 3, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        masks = functional.interpolate(self.masks(features), size=x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": masks, "classes": self.classes(features.mean((2, 3)))}


class AnySize(nn.Module):
    """Convolutions with a residual and an average over all positions, for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = _block(3, 8, 2), _block(8, 8)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = self.head(self.pool(x + self.body(x)).mean((2, 3)))
        return result


class Sequences(nn.Module):
    """Convolutions along a signal of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 3, 1)
        )

    def forward(self, signal: Tensor) -> Tensor:
        result: Tensor = self.layers(signal)
        return result


@dataclass(frozen=True)
class Case:
    """A network and how it is prepared."""

    make: Callable[[], nn.Module]
    example: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_shapes: Any = None
    sizes: tuple[dict[str, int], ...] = ({},)
    integers_only: bool = True


_height, _width, _length = (Dim(name, min=4, max=512) for name in ("height", "width", "length"))
_IMAGE = torch.zeros(2, 3, 16, 16)
_IDS = torch.tensor([[29, 0], [0, 19]])
_SIZES = ({"height": 8, "width": 8}, {"height": 11, "width": 6}, {"height": 4, "width": 13})

FIXED = {
    "image and vector": Case(
        ImageAndVector, (_IMAGE, torch.zeros(2, 5)), ("photo", "facts"), ("logits",)
    ),
    "siamese": Case(Siamese, {"left": _IMAGE, "right": _IMAGE}, ("left", "right"), ("output_0", "output_1")),
    "dictionary": Case(Heads, _IMAGE, ("image",), ("scores", "boxes_0", "boxes_1")),
    "dataclass": Case(Detector, _IMAGE, ("image",), ("score", "mask"), integers_only=False),
    "recommender": Case(
        Recommender,
        {"ids": _IDS, "numbers": torch.zeros(2, 4)},
        ("ids", "numbers"),
        ("rating", "liked"),
        integers_only=False,
    ),
    "encoder": Case(
        Encoder,
        {"input_ids": torch.tensor([[49] * 7] * 2), "attention_mask": torch.ones(2, 7, dtype=torch.int64)},
        ("input_ids", "attention_mask"),
        ("logits", "last_hidden_state"),
        integers_only=False,
    ),
}  # fmt: skip
FREE = {
    "u-net": Case(
        UNet, _IMAGE, ("image",), ("logits",), {2: 2 * _height, 3: 2 * _width}, _SIZES
    ),
    "segmentation": Case(
        Segmentation, _IMAGE, ("image",), ("out", "classes"), {2: _height, 3: _width}, _SIZES, integers_only=False
    ),
    "any size": Case(AnySize, _IMAGE, ("image",), ("logits",), {2: _height, 3: _width}, _SIZES),
    "sequence": Case(
        Sequences,
        {"signal": torch.zeros(2, 4, 12)},
        ("signal",),
        ("logits",),
        {"signal": {2: _length}},
        ({"length": 12}, {"length": 7}, {"length": 30}),
    ),
    "encoder of any length": Case(
        Encoder,
        {"input_ids": torch.tensor([[49] * 7] * 2), "attention_mask": torch.ones(2, 7, dtype=torch.int64)},
        ("input_ids", "attention_mask"),
        ("logits", "last_hidden_state"),
        {"input_ids": {1: Dim("tokens", min=2, max=32)}, "attention_mask": {1: Dim("tokens", min=2, max=32)}},
        ({"tokens": 7}, {"tokens": 4}, {"tokens": 32}),
        integers_only=False,
    ),
}  # fmt: skip
