"""The known data sets, and one function that opens images by name, path or import path."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data.images import ImageSet, Split
from cpt_deploy.data.places import DATA_DIR_VARIABLE, cache_folder, candidate_folders
from cpt_deploy.data.sources.archives import is_archive_folder, load_archives
from cpt_deploy.data.sources.cifar import load_cifar
from cpt_deploy.data.sources.custom import load_custom
from cpt_deploy.data.sources.digits import load_digits
from cpt_deploy.data.sources.folders import load_folder
from cpt_deploy.data.sources.made_up import PHOTOGRAPHS, made_up_images
from cpt_deploy.data.sources.mnist import load_mnist
from cpt_deploy.errors import DataError, MissingDataError, UnknownDataError, UsageError
from cpt_deploy.recipe.smoke import MADE_UP
from cpt_deploy.registry import Registry, nearest_names

_DIGITS = tuple(str(digit) for digit in range(10))
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class DatasetInfo:
    """A known data set.

    Args:
        name: Its name in recipes.
        summary: A short description.
        classes: Number of classes.
        images: Number of images for training and for testing.
        preprocessing: Default preprocessing, which a recipe can override.
        obtain: How to get it, in one line.
        fetch_name: The class of `torchvision.datasets` that can download it, if any.
        load: Reads one split from the candidate folders.
    """

    name: str
    summary: str
    classes: int
    images: tuple[int, int]
    preprocessing: Preprocessing
    obtain: str
    fetch_name: str | None
    load: Callable[["DatasetInfo", Split, list[Path]], ImageSet]


datasets: Registry[DatasetInfo] = Registry("data set")
"""The data sets that a recipe can name; others are given by path or as `module:factory`."""


def load_images(name_or_path: str | Path, *, split: Split, root: Path | None = None) -> ImageSet:
    """Find and open one split of a data set. Nothing is ever downloaded.

    Args:
        name_or_path: A known name; a folder or an `.npz` file, as a path or as a name within `$CPT_DATA_DIR` or the
            cache; or an import path `module:factory`.
        split: "train" or "test".
        root: The folder of a known data set; by default `$CPT_DATA_DIR/<name>`, then the cache.

    Raises:
        MissingDataError: If the name is unknown or its files are not there; the message lists the folders.
        DataError: If files are damaged, or some are missing.
    """
    name = str(name_or_path)
    if name.startswith(MADE_UP):
        return _made_up(name, split)
    if name in datasets:
        info = datasets.get(name)
        return replace(info.load(info, split, candidate_folders(name, root)), published=name)
    if ":" in name:
        return load_custom(name, split, root)
    path = _find_path(name, root)
    known = _known_layout(path)
    if known is not None:
        return replace(known.load(known, split, [path]), published=known.name)
    if path.is_file() or is_archive_folder(path):
        return load_archives(path, split)
    return load_folder(path, split)


def image_folder(name: str, root: Path | None = None) -> Path | None:
    """Return the folder of image files that `load_images` would read, or None if the data are of another kind.

    Raises:
        MissingDataError: If the name is unknown or the path does not exist.
    """
    if name in datasets or ":" in name or name.startswith(MADE_UP):
        return None
    path = _find_path(name, root)
    is_other = path.is_file() or is_archive_folder(path) or _known_layout(path) is not None
    return None if is_other else path


def _made_up(name: str, split: Split) -> ImageSet:
    """Return random images of the shape of the data set whose name comes after `MADE_UP`."""
    kind = name.removeprefix(MADE_UP)
    if kind not in datasets:
        return made_up_images(name, split, PHOTOGRAPHS, _CLASSES.get(kind, 10))
    info = datasets.get(kind)
    return replace(made_up_images(name, split, info.preprocessing, info.classes), published=kind)


def _known_layout(path: Path) -> DatasetInfo | None:
    for known in datasets.names():
        if any((path / layout).is_dir() for layout in _LAYOUTS.get(known, ())):
            return datasets.get(known)
    return None


def fetch_dataset(name: str, root: Path | None = None) -> Path:
    """Download a known data set at the user's request, and return its folder.

    Args:
        name: The data set's name.
        root: The folder to download to; the cache by default.

    Raises:
        UsageError: If the name is unknown or the set cannot be downloaded.
        DataError: If the download fails or the folder cannot be written.
    """
    info = datasets.get(name)
    if info.fetch_name is None:
        raise UsageError(f"Expected a data set that can be downloaded, but got {name!r}", hint=info.obtain)
    import torchvision

    folder = root if root is not None else cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, info.fetch_name)(folder, download=True)
    # urllib's errors are OSErrors; torchvision raises RuntimeError when all mirrors fail or a checksum differs.
    except (OSError, RuntimeError) as error:
        raise DataError(f"Expected to download {name} to {folder}, but got: {error}", hint=info.obtain) from error
    return folder


def _find_path(name: str, root: Path | None) -> Path:
    written = Path(name).expanduser()
    candidates = [written] if written.is_absolute() else [written, *candidate_folders(name, root)]
    found = next((path for path in candidates if path.exists()), None)
    if found is not None:
        if found.is_file() and found.suffix != ".npz":
            raise DataError(f"Expected {found} to be a folder or an .npz file, but it is neither")
        return found
    if written.suffix or len(written.parts) > 1:
        raise MissingDataError(f"Expected a folder or an .npz file at {name}, but found nothing there")
    raise UnknownDataError(
        f"Expected a known data set, a path or module:factory, but got {name!r}",
        hint=f"{nearest_names(name, datasets.names())}; ${DATA_DIR_VARIABLE} and {cache_folder()} have no such folder",
    )


_CLASSES = {"imagenet": 1000}
"""Number of classes of folders with a well-known name, for made-up images."""

_LAYOUTS = {
    "mnist": ("MNIST/raw",),
    "fashion-mnist": ("FashionMNIST/raw",),
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
}


def _gray(size: int, mean: float, std: float) -> Preprocessing:
    return Preprocessing(channels=1, size=(size, size), mean=(mean,), std=(std,))


# The authors of CPT normalise CIFAR-100 with these values of CIFAR-10 as well.
_CIFAR = Preprocessing(channels=3, size=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def _obtain(name: str) -> str:
    layout = _LAYOUTS[name][0]
    return (
        f"set data.root, or {DATA_DIR_VARIABLE} with a folder {name} in it, to a folder that holds {layout}; "
        f"or download it: cpt datasets --fetch {name}"
    )


def _load_digits(_: DatasetInfo, split: Split, __: list[Path]) -> ImageSet:
    return load_digits(split)


def _load_mnist(info: DatasetInfo, split: Split, folders: list[Path]) -> ImageSet:
    classes = _FASHION if info.name == "fashion-mnist" else _DIGITS
    return load_mnist(info.name, split, folders, classes, layout=_LAYOUTS[info.name][0], hint=info.obtain)


def _load_cifar(info: DatasetInfo, split: Split, folders: list[Path]) -> ImageSet:
    from torchvision.datasets import CIFAR10, CIFAR100

    return load_cifar(info.name, split, folders, CIFAR100 if info.name == "cifar100" else CIFAR10, hint=info.obtain)


for _info in (
    DatasetInfo(
        "digits",
        "handwritten digits, 8x8 gray, bundled with scikit-learn",
        10,
        (1442, 355),
        _gray(8, 0.3052, 0.3760),
        "comes with scikit-learn",
        None,
        _load_digits,
    ),
    DatasetInfo(
        "mnist",
        "handwritten digits, 28x28 gray",
        10,
        (60000, 10000),
        _gray(28, 0.1307, 0.3081),
        _obtain("mnist"),
        "MNIST",
        _load_mnist,
    ),
    DatasetInfo(
        "fashion-mnist",
        "articles of clothing, 28x28 gray",
        10,
        (60000, 10000),
        _gray(28, 0.2860, 0.3530),
        _obtain("fashion-mnist"),
        "FashionMNIST",
        _load_mnist,
    ),
    DatasetInfo(
        "cifar10", "photographs, 32x32 RGB", 10, (50000, 10000), _CIFAR, _obtain("cifar10"), "CIFAR10", _load_cifar
    ),
    DatasetInfo(
        "cifar100", "photographs, 32x32 RGB", 100, (50000, 10000), _CIFAR, _obtain("cifar100"), "CIFAR100", _load_cifar
    ),
):
    datasets.register(_info.name)(_info)
