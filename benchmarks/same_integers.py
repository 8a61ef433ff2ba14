"""Check that a change of the code leaves all integers and losses unchanged: run it before, and again after.

Each network, with random weights, takes some training steps on integers, is calibrated on noise, frozen (at 8 bits, at
4, and symmetric) and written. Recorded are the exact losses, and of each model.onnx a digest of every constant and one
of its nodes.

    python benchmarks/same_integers.py before.json
    python benchmarks/same_integers.py after.json --against before.json
"""

import argparse
import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.export import write_onnx
from cpt_deploy.integer import freeze
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.quantization.calibration.symmetric import make_symmetric

STEPS, BATCH, CLASSES = 5, 8, 10
Found = dict[str, str]


class Transposed(nn.Module):
    """Transposed convolutions, a clamp, a concatenation, a pool before a ReLU, a constant, Linear with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardtanh(0.0, 2.0))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.norm = nn.BatchNorm2d(11)
        self.last = nn.Sequential(nn.Linear(11 * 16, 12), nn.BatchNorm1d(12), nn.ReLU6(), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, 10), of (N, 3, 16, 16)."""
        x = functional.relu(self.norm(torch.cat([x, self.up(self.down(x))], 1))) * 0.5 + 0.25
        x = functional.relu(functional.max_pool2d(x, 2))
        return self.last(functional.avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """Convolutions with BatchNorm and clamps next to operations in float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Hardtanh(0.0, 1.5), nn.Conv2d(8, 8, 1))
        self.norm, self.tokens, self.head = nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, 10), of (N, 3, 16, 16)."""
        x = self.norm(functional.gelu(self.body(self.stem(x)))).flatten(2).transpose(1, 2)
        return self.head((x + functional.relu(self.tokens(x))).mean(1))  # type: ignore[no-any-return]


def vision_transformer() -> nn.Module:
    """Return a small vision transformer of torchvision for inputs of (3, 32, 32)."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=CLASSES)


def _named(name: str, channels: int, side: int) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    shape = (channels, side, side)
    return lambda: build_model(name, num_classes=CLASSES, in_channels=channels, input_size=(side, side)), shape


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits quickstart": _named("tiny", 1, 8),
    "Fashion-MNIST ResNet-20": _named("resnet20", 1, 28),
    "resnet18": _named("torchvision/resnet18", 3, 64),
    "mobilenet_v2": _named("torchvision/mobilenet_v2", 3, 64),
    "efficientnet_b0": _named("torchvision/efficientnet_b0", 3, 64),
    "vision transformer": (vision_transformer, (3, 32, 32)),
    "transposed convolutions": (Transposed, (3, 16, 16)),
    "integers and floats": (Mixed, (3, 16, 16)),
}


def written(name: str, model: QuantizedModel, **bits: int) -> Found:
    """Return digests of the nodes and of each constant of a model's ONNX file."""
    graph = onnx.load_from_string(write_onnx(freeze(model, **bits))).graph
    found = {f"{name}: nodes": b"".join(node.SerializeToString(deterministic=True) for node in graph.node)}
    found |= {f"{name}: {c.name}": numpy_helper.to_array(c).tobytes() for c in graph.initializer}
    return {key: hashlib.sha256(value).hexdigest()[:16] for key, value in found.items()}


def results(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Found:
    """Train a network for some steps on each path, calibrate, freeze and write it."""
    torch.manual_seed(0)
    model = prepare(make(), torch.zeros(2, *shape), QuantizationConfig()).train()
    batches = [(torch.randn(BATCH, *shape), torch.randint(0, CLASSES, (BATCH,))) for _ in range(STEPS)]
    found: Found = {}
    for compute in ("auto", "float32"):
        trained = copy.deepcopy(model)
        trained.compute = compute  # type: ignore[assignment]
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9)
        for step, (inputs, labels) in enumerate(batches):
            torch.manual_seed(step)
            trained.set_bits(3 + step, 8)
            trained.set_step(step)
            optimizer.zero_grad()
            loss = functional.cross_entropy(trained(inputs), labels)
            loss.backward()
            optimizer.step()
            found[f"{compute}: loss of step {step}"] = loss.item().hex()
    four = copy.deepcopy(trained)
    calibrate(trained, [inputs for inputs, _ in batches])
    found |= written("8 bits", trained)
    calibrate(four, [inputs for inputs, _ in batches], weight_bits=4, activation_bits=4)
    found |= written("4 bits", four, weight_bits=4, activation_bits=4)
    make_symmetric(trained)
    calibrate(trained, [inputs for inputs, _ in batches])
    return found | written("symmetric", trained)


def main() -> None:
    """Write the results, and print the differences to an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    found = {name: results(*network) for name, network in NETWORKS.items()}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    before = json.loads(arguments.against.read_text()) if arguments.against else found
    differing = [
        f"{name}: {key}"
        for name in before
        for key in sorted(before[name].keys() | found[name].keys())
        if before[name].get(key) != found[name].get(key)
    ]
    print(f"{sum(map(len, found.values()))} losses and constants, {len(differing)} differ", *differing, sep="\n")
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
