"""Save the weights of a torchvision network as a file, which `cpt train` starts from: it downloads nothing itself.

python examples/fine_tuning/save_weights.py resnet18.pth             # ImageNet's, which torchvision downloads
python examples/fine_tuning/save_weights.py resnet18.pth --random    # without a network connection, to try the steps
"""

import argparse
import sys
from urllib.error import URLError

import torch
import torchvision


def main(path: str, *, pretrained: bool = True) -> None:
    """Write the state dict of a ResNet-18."""
    try:
        network = torchvision.models.resnet18(weights="DEFAULT" if pretrained else None)
    except URLError as error:
        sys.exit(f"The weights cannot be downloaded: {error.reason}. --random writes random ones, to try the steps.")
    torch.save(network.state_dict(), path)
    print(f"{'pretrained' if pretrained else 'random'} weights in {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Save the weights of torchvision's ResNet-18 as a file.")
    parser.add_argument("path", nargs="?", default="resnet18.pth", help="the file (default: %(default)s)")
    parser.add_argument("--random", action="store_true", help="random weights, without a download")
    given = parser.parse_args()
    main(given.path, pretrained=not given.random)
