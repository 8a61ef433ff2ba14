"""Save the weights of a torchvision network as a file, which `cpt train` starts from: it downloads nothing itself.

python examples/fine_tuning/save_weights.py resnet18.pth             # ImageNet's, which torchvision downloads
python examples/fine_tuning/save_weights.py resnet18.pth --random    # without a network connection, to try the steps
"""

import sys

import torch
import torchvision


def main(path: str, *, pretrained: bool = True) -> None:
    """Write the state dict of a ResNet-18."""
    torch.save(torchvision.models.resnet18(weights="DEFAULT" if pretrained else None).state_dict(), path)
    print(f"{'pretrained' if pretrained else 'random'} weights in {path}")


if __name__ == "__main__":
    paths = [word for word in sys.argv[1:] if word != "--random"]
    main(paths[0] if paths else "resnet18.pth", pretrained="--random" not in sys.argv)
