"""Write a folder of images to try the recipe with: 600 of scikit-learn's digits as PNG files.

python examples/own_images/make_photos.py photos        # photos/train/<class>/*.png, photos/val/<class>/*.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: str) -> None:
    """Write four of five images to train/, every fifth to val/."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
        target = Path(folder) / ("val" if index % 5 == 4 else "train") / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32)).save(target / f"{index}.png")
    print(f"600 images in {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "photos")
