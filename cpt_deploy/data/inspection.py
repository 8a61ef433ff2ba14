"""Find problems of an image data set before training, by decoding each image once."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cpt_deploy.data.images import FileImages, ImageSet, Split
from cpt_deploy.data.sources.folders import scan_folder
from cpt_deploy.errors import DataError

Progress = Callable[[int, int], None]
"""A callback with the number of decoded images and the number of all images."""


@dataclass(frozen=True)
class SplitFindings:
    """The contents and problems of one split.

    Args:
        split: "train" or "test".
        counts: Number of images of each class, including bad ones.
        left_out: Number of files that are not read as images, by file type.
        bad: Images that cannot be decoded, each with the reason.
    """

    split: Split
    counts: Mapping[str, int]
    left_out: Mapping[str, int]
    bad: Sequence[tuple[str, str]]

    @property
    def images(self) -> int:
        """Number of images, including bad ones."""
        return sum(self.counts.values())

    @property
    def empty_classes(self) -> list[str]:
        """Classes without images."""
        return [name for name, count in self.counts.items() if count == 0]


@dataclass(frozen=True)
class Findings:
    """The findings of a data set after all of its images were decoded.

    Args:
        splits: The splits that exist.
        duplicates: Pairs of a training image and a test image with identical pixels.
    """

    splits: Sequence[SplitFindings]
    duplicates: Sequence[tuple[str, str]] = field(default_factory=tuple)

    @property
    def of_one_split(self) -> dict[Split, list[str]]:
        """Classes that occur in only one of the splits, by split; empty if there is one split."""
        if len(self.splits) < 2:
            return {}
        train, test = (set(findings.counts) for findings in self.splits)
        only: dict[Split, list[str]] = {"train": sorted(train - test), "test": sorted(test - train)}
        return {split: names for split, names in only.items() if names}

    @property
    def errors(self) -> list[str]:
        """The problems that prevent training, one line each."""
        lines = [f"bad {findings.split} images: {len(findings.bad):,}" for findings in self.splits if findings.bad]
        lines += [
            f"classes without {findings.split} images: {', '.join(findings.empty_classes)}"
            for findings in self.splits
            if findings.empty_classes
        ]
        return lines + [f"classes of {split} only: {', '.join(names)}" for split, names in self.of_one_split.items()]


def inspect_folder(root: Path, progress: Progress = lambda done, total: None) -> Findings:
    """Decode all images of an image folder and return its problems.

    Args:
        root: A folder as `load_folder` reads it; problems of its contents are returned, not raised.
        progress: Called after each image.

    Raises:
        DataError: If it has no split at all.
    """
    scans = {split: found for split in _SPLITS if (found := scan_folder(root, split)) is not None}
    if not scans:
        raise DataError(
            f"Expected a folder per class, or folders train and val with one per class, in {root}, but found none",
            hint="expected layout: ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg, or ROOT/<class>/*.jpg",
        )
    sets = {
        split: FileImages(
            root.name,
            split,
            tuple(scan.files) or ("",),
            np.repeat(np.arange(len(scan.files)), [len(files) for files in scan.files.values()]),
            tuple(path for files in scan.files.values() for path in files),
        )
        for split, scan in scans.items()
        if any(scan.files.values())
    }
    results = _decoded_all(sets, progress)
    splits = [
        SplitFindings(
            split,
            {name: len(files) for name, files in scan.files.items()},
            scan.left_out,
            [(name, reason) for name, reason, _ in results.get(split, []) if reason],
        )
        for split, scan in scans.items()
    ]
    return Findings(splits, _duplicates(results))


def inspect_images(sets: Mapping[Split, ImageSet], progress: Progress = lambda done, total: None) -> Findings:
    """Decode all images of a data set that could be opened, and return its problems.

    Args:
        sets: Its splits.
        progress: Called after each image.
    """
    results = _decoded_all(sets, progress)
    splits = []
    for split, images in sets.items():
        counts = Counter(images.labels.tolist())
        by_name = {name: counts[label] for label, name in enumerate(images.classes)}
        splits.append(SplitFindings(split, by_name, {}, [(name, why) for name, why, _ in results[split] if why]))
    return Findings(splits, _duplicates(results))


def without_bad(images: ImageSet, progress: Progress = lambda done, total: None) -> ImageSet:
    """Return the images of a set that can be decoded, by decoding all of them.

    Args:
        images: The set; only files can be bad.
        progress: Called after each image.

    Raises:
        DataError: If a class would be left without images.
    """
    if not isinstance(images, FileImages):
        return images
    good = np.array([not why for _, why, _ in _decoded_all({images.split: images}, progress)[images.split]])
    labels = images.labels[good]
    for label, name in enumerate(images.classes):
        if label not in labels:
            raise DataError(
                f"Expected an image of class {name!r} in {images.describe()} that can be read, but got none"
            )
    paths = tuple(path for path, kept in zip(images.paths, good, strict=True) if kept)
    skipped = tuple(path for path, kept in zip(images.paths, good, strict=True) if not kept)
    return replace(images, labels=labels, paths=paths, skipped=skipped)


_SPLITS: tuple[Split, ...] = ("train", "test")

_Result = tuple[str, str, str]
"""An image's name, the reason why it is bad (empty if it is not), and the digest of its pixels."""


def _decoded_all(sets: Mapping[Split, ImageSet], progress: Progress) -> dict[Split, list[_Result]]:
    total, done = sum(len(images) for images in sets.values()), 0
    results: dict[Split, list[_Result]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        for split, images in sets.items():
            results[split] = []
            for result in pool.map(_decoder(images), range(len(images))):
                results[split].append(result)
                done += 1
                progress(done, total)
    return results


def _decoder(images: ImageSet) -> Callable[[int], _Result]:
    def result(index: int) -> _Result:
        name = str(images.paths[index]) if isinstance(images, FileImages) else f"{images.split} image {index}"
        try:
            pixels = np.ascontiguousarray(np.asarray(images.image(index)))
        except DataError as error:
            return name, error.message.removeprefix(f"{name}: "), ""
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(pixels.data)
        return name, "", digest.hexdigest()

    return result


def _duplicates(results: Mapping[Split, Sequence[_Result]]) -> list[tuple[str, str]]:
    trained = {digest: name for name, _, digest in reversed(results.get("train", [])) if digest}
    return [(trained[digest], name) for name, _, digest in results.get("test", []) if digest in trained]
