"""Your own model and your own training loop: prepare, train with scheduled bits, calibrate, export, classify.

    python examples/train_custom_model.py my-bundle
    cpt validate my-bundle --data digits
    cpt serve my-bundle

Needs `pip install '.[train]'`; takes about ten seconds on a CPU.
"""

import sys

import torch
from torch import nn

from cpt_deploy import (
    CyclicPrecision,
    ImageProcessor,
    Preprocessing,
    QuantizationConfig,
    calibrate,
    export_bundle,
    prepare,
)
from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.data import eval_loader, load_images, train_loader

EPOCHS, BATCH_SIZE = 8, 64


class Net(nn.Module):
    """A plain PyTorch module: any module whose graph can be traced works, and needs no code for quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, 10) of images (N, 1, 8, 8)."""
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        logits: torch.Tensor = self.head(torch.flatten(self.pool(x), 1))
        return logits


def main(destination: str) -> float:
    """Train the net on digits, write its bundle, and return the bundle's accuracy in onnxruntime."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(channels=1, size=(8, 8), mean=(0.305,), std=(0.376,))
    train, test = load_images("digits", split="train"), load_images("digits", split="test")

    model = prepare(Net(), torch.zeros(2, *preprocessing.input_shape), QuantizationConfig(min_bits=3, max_bits=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    steps_per_epoch = len(train) // BATCH_SIZE
    schedule = CyclicPrecision(model, total_steps=EPOCHS * steps_per_epoch, cycles=4)

    for epoch in range(EPOCHS):
        for images, labels in train_loader(train, preprocessing, (), batch_size=BATCH_SIZE, seed=0, epoch=epoch):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {loss.item():.3f}")

    # Training estimated statistics and ranges at changing bits; the export needs those at max_bits.
    calibrate(model, train_loader(train, preprocessing, (), batch_size=64, seed=0, epoch=EPOCHS))
    model.eval()

    processor = ImageProcessor(preprocessing, test.classes)
    sample, _ = next(iter(eval_loader(test, preprocessing, 8)))
    bundle = export_bundle(
        model,
        destination,
        sample,
        task="image-classification",
        processor=processor,
        name="custom-digits",
        facts={"dataset": "digits"},
    )

    runtime = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    correct = 0
    for images, labels in eval_loader(test, preprocessing, 100):
        best = processor.answers(runtime.run({"image": images.numpy()}), 1)
        correct += sum(row[0].index == label for row, label in zip(best, labels.tolist(), strict=True))
    accuracy = correct / len(test)
    print(f"{bundle.path}: {accuracy:.2%} in onnxruntime, {bundle.onnx_path.stat().st_size:,} bytes")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "my-bundle")
