"""The quickstart: train, export and validate a small model on scikit-learn's handwritten digits, without a download."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.errors import UsageError
from cpt_deploy.tasks import SILENT, Evidence, ExportOptions, Reporter, ValidationOptions
from cpt_deploy.workflows.export import export_run
from cpt_deploy.workflows.validation import validate_bundle

if TYPE_CHECKING:
    from cpt_deploy.training import RunReport, TrainReporter

PRESET = "digits-quickstart"
BITS = 8
MAX_DROP = 2.0
"""Allowed drop in points of accuracy; the digits are so few that even equal answers cannot prove a drop below one."""
RUN, DIGIT, LOG, SUMMARY = "run", "digit.png", "server.log", "quickstart.json"


def make_room(directory: Path) -> None:
    """Remove the files of an earlier quickstart from a directory.

    Raises:
        UsageError: If the directory contains other files.
    """
    if not directory.exists():
        directory.mkdir(parents=True)
    ours = {RUN, DIGIT, LOG, SUMMARY}
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else {directory.name}
    if found and not (found <= ours and SUMMARY in found):
        raise UsageError(
            f"Expected a new directory or that of an earlier quickstart, but {readable.path(directory)} holds "
            f"{', '.join(sorted(found - ours)[:3] or sorted(found)[:3])}",
            hint="choose another one with --out",
        )
    shutil.rmtree(directory / RUN, ignore_errors=True)
    for name in (DIGIT, LOG):
        (directory / name).unlink(missing_ok=True)
    (directory / SUMMARY).write_text("{}\n", encoding="utf-8")


def train_digits(directory: Path, reporter: "TrainReporter | None" = None) -> "RunReport":
    """Train a small ResNet with bits that cycle between 5 and 8; the run is in `DIRECTORY/run`."""
    import torch

    from cpt_deploy.recipe import load_recipe
    from cpt_deploy.training import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is so small that more threads would only cause waiting
    try:
        return train(load_recipe(PRESET), directory / RUN, reporter=reporter)
    finally:
        torch.set_num_threads(threads)


def export_digits(directory: Path, reporter: Reporter = SILENT) -> Bundle:
    """Freeze the trained model to 8-bit integers."""
    return export_run(directory / RUN, ExportOptions(bits=BITS), reporter=reporter)


def validate_digits(bundle: Bundle, reporter: Reporter = SILENT) -> Evidence:
    """Compare accuracy and every integer with onnxruntime's."""
    options = ValidationOptions(bundle.facts["dataset"], max_drop=MAX_DROP, allow_undecided=True, require_exact=True)
    return validate_bundle(bundle.path, options, reporter=reporter)


def write_digit(bundle: Bundle, path: Path) -> str:
    """Write the first image of the test set as a PNG and return its class."""
    import numpy as np
    from PIL import Image

    from cpt_deploy.data import load_images

    images = load_images(bundle.facts["dataset"], split="test")
    Image.fromarray(np.asarray(images.image(0))).save(path)
    return str(images.classes[int(images.labels[0])])
