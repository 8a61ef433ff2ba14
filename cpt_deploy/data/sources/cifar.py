"""Read CIFAR-10 and CIFAR-100 in the original "python version" layout by torchvision, once the checksums agree."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpt_deploy.data.images import ArrayImages, Split
from cpt_deploy.data.places import find_folder
from cpt_deploy.errors import DataError


def load_cifar(name: str, split: Split, folders: Sequence[Path], reader: Any, *, hint: str) -> ArrayImages:
    """Return one split of CIFAR.

    The files are pickles, so no file is opened before its checksum is found equal to the published one.

    Args:
        name: The data set's name.
        split: "train" or "test".
        folders: Folders that may contain `cifar-10-batches-py` (or `cifar-100-python`), or those folders themselves.
        reader: `torchvision.datasets.CIFAR10` or `CIFAR100`.
        hint: How to get the data set.

    Raises:
        DataError: If files are missing or damaged.
    """
    checksums = {entry[0]: entry[1] for entry in [*reader.train_list, *reader.test_list]}
    checksums[reader.meta["filename"]] = reader.meta["md5"]
    roots = [folder.parent if folder.name == reader.base_folder else folder for folder in folders]
    inner = [root / reader.base_folder for root in roots]
    found = find_folder(name, inner, list(checksums), hint=hint)
    for filename, expected in checksums.items():
        path = found / filename
        try:
            actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        except OSError as error:
            raise DataError(f"Expected a readable file at {path}, but got: {error.strerror}") from error
        if actual != expected:
            raise DataError(
                f"Expected {path} to be the original file (MD5 {expected}), but got MD5 {actual}: it is damaged",
                hint=hint,
            )
    data = reader(found.parent, train=split == "train", download=False)
    return ArrayImages(
        name, split, tuple(data.classes), np.asarray(data.targets, dtype=np.int64), np.ascontiguousarray(data.data)
    )
