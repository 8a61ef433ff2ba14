"""The output of `cpt datasets check`: the content of a data set of images, and all of its problems."""

from pathlib import Path

from cpt_cli.output import out
from cpt_cli.shown.training_progress import describe_left_out
from cpt_deploy import readable
from cpt_deploy.errors import DataError

_SHOWN = 10


def show_dataset_check(name: str, root: Path | None) -> None:
    """Decode all images of a data set and print the findings.

    Args:
        name: A folder, or another data set by its `data.name`.
        root: Folder of a known data set.

    Raises:
        DataError: If a problem prevents training.
    """
    from cpt_deploy.workflows import check_dataset

    findings = check_dataset(name, root, reporter=out)
    classes = dict.fromkeys(label for split in findings.splits for label in split.counts)
    sizes: dict[str, object] = {
        split.split: f"{readable.counted(split.images, 'image')}, "
        f"{readable.counted(len(split.counts), 'class', 'classes')}"
        for split in findings.splits
    }
    out.fields(name, sizes)
    out.table(
        ("class", *(f"{split.split} images" for split in findings.splits)),
        [(label, *(f"{split.counts.get(label, 0):,}" for split in findings.splits)) for label in classes],
    )
    for split in findings.splits:
        if split.left_out:
            out.note(f"not read as images ({split.split}): {describe_left_out(split.left_out)}")
        _listed(f"{split.split} images that cannot be read", [f"{path}: {why}" for path, why in split.bad])
    _listed(
        "test images with the pixels of a training image, so that the accuracy on them is no evidence",
        [f"{readable.path(Path(trained))} = {readable.path(Path(tested))}" for trained, tested in findings.duplicates],
    )
    out.result(
        {
            "splits": [
                {
                    "split": split.split,
                    "classes": dict(split.counts),
                    "left_out": dict(split.left_out),
                    "bad": [{"file": path, "reason": reason} for path, reason in split.bad],
                }
                for split in findings.splits
            ],
            "duplicates": [list(pair) for pair in findings.duplicates],
            "errors": findings.errors,
        }
    )
    if findings.errors:
        raise DataError(
            f"Expected a data set to train with in {name}, but found {'; '.join(findings.errors)}",
            hint="remove or repair them; data.skip_bad=true trains without images that cannot be read",
        )
    out.note("the data set can be trained on")


def _listed(title: str, lines: list[str]) -> None:
    if not lines:
        return
    out.warning(f"{title}: {len(lines):,}")
    for line in lines[:_SHOWN]:
        out.line(f"  {line}")
    if len(lines) > _SHOWN:
        out.line(f"  … and {len(lines) - _SHOWN:,} more; --json lists all")
