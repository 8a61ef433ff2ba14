"""Check a data set of images: bad ones, empty classes, classes of one split only, the same image in both splits."""

from pathlib import Path
from typing import Any

from cpt_deploy import readable
from cpt_deploy.data import Findings, image_folder, inspect_folder, inspect_images, load_images
from cpt_deploy.errors import DataError
from cpt_deploy.tasks.catalogs import DataCheck
from cpt_deploy.tasks.reporting import Reporter

_DUPLICATES = "test images with the pixels of a training image, so that the accuracy on them is no evidence"


def check_images(name: str, root: Path | None, reporter: Reporter) -> DataCheck:
    """Decode all images, see `Task.check_data`."""
    with reporter.bar("decoding", 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.advance(done, total)

        folder = image_folder(name, root)
        if folder is not None:
            return _check(inspect_folder(folder, progress))
        images: dict[Any, Any] = {"test": load_images(name, split="test", root=root)}
        try:
            images = {"train": load_images(name, split="train", root=root), **images}
        except DataError as error:  # a test set without a training set
            reporter.note(error.message)
        return _check(inspect_images(images, progress))


def _check(findings: Findings) -> DataCheck:
    splits = findings.splits
    classes = dict.fromkeys(label for split in splits for label in split.counts)
    twice = [f"{readable.path(Path(one))} = {readable.path(Path(other))}" for one, other in findings.duplicates]
    return DataCheck(
        sizes={
            split.split: f"{readable.counted(split.images, 'image')}, "
            + readable.counted(len(split.counts), "class", "classes")
            for split in splits
        },
        table=[
            ("class", *(f"{split.split} images" for split in splits)),
            *((label, *(f"{split.counts.get(label, 0):,}" for split in splits)) for label in classes),
        ],
        problems={
            **{
                f"{split.split} images that cannot be read": [f"{path}: {why}" for path, why in split.bad]
                for split in splits
            },
            _DUPLICATES: twice,
        },
        notes=[
            f"not read as images ({split.split}): "
            + ", ".join(f"{count:,} {kind}" for kind, count in split.left_out.items())
            for split in splits
            if split.left_out
        ],
        errors=findings.errors,
        repair="remove or repair them; data.skip_bad=true trains without images that cannot be read",
        content={
            "splits": [
                {
                    "split": split.split,
                    "classes": dict(split.counts),
                    "left_out": dict(split.left_out),
                    "bad": [{"file": path, "reason": reason} for path, reason in split.bad],
                }
                for split in splits
            ],
            "duplicates": [list(pair) for pair in findings.duplicates],
        },
    )
