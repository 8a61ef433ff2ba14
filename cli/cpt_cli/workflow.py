"""The steps between the library's parts that commands share: from a run to a bundle, and from a bundle to its run."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out
from cpt_cli.portability import note_reduced
from cpt_cli.widths import budgeted_widths, given_widths, measure_on_images, settle_at
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cpt_deploy.bundle import Bundle, Preprocessing
    from cpt_deploy.bundle.opened import OpenedBundle
    from cpt_deploy.data import ImageSet
    from cpt_deploy.recipe import Recipe
    from cpt_deploy.training import TrainedRun
    from cpt_deploy.validation import Reference, ValidationReport

GOLDEN_IMAGES = 8
TRAINED_DIGEST = "trained_sha256"
"""The fact in a bundle's config.json that names the trained weights it was made from."""


@dataclass(frozen=True)
class ExportOptions:
    """What an export of a run can be asked for.

    Args:
        bits: Bits of the weights; the run's upper bound, at most 8, if None.
        activation_bits: Bits of the cycling activations; the upper bound likewise if None.
        budget: Most size of the weights, as a fraction of that at 8 bits, instead of `bits`: layers get bits each.
        native: Whether weights keep their whole range, though pairs of products may saturate on x86 without VNNI.
        symmetric: Whether activations are int8 with a zero point of 0, for TensorRT and its like.
        opset: ONNX opset; the least at which no weights could be smaller if None.
        formats: Further forms of the model, names of `cpt_deploy.bundle.FORMATS`.
        force: Whether to export at bits that the run never trained at.
    """

    bits: int | None = None
    activation_bits: int | None = None
    budget: float | None = None
    native: bool = False
    symmetric: bool = False
    opset: int | None = None
    formats: Sequence[str] = ()
    force: bool = False

    @property
    def suffix(self) -> str:
        """What the name of a bundle's folder ends in, beside the bits."""
        return ("-native" if self.native else "") + ("-symmetric" if self.symmetric else "")


def export_run(
    run_dir: Path, options: ExportOptions, *, destination: Path | None = None, data_dir: Path | None = None
) -> "Bundle":
    """Freeze the trained model of a run and write its bundle.

    Args:
        run_dir: The directory of the run.
        options: Bits and forms of the bundle.
        destination: Where to write; `RUN/bundle-<bits>bit` or the like if None.
        data_dir: Folder that holds the data set; the recipe's if None.

    Raises:
        UsageError: If the run never trained at these bits and `force` is not set, or the budget cannot be met.
        ConversionError: If the model cannot take one of the formats.
        CheckpointError: If the run is unfinished or damaged.
        BundleError: If the bundle cannot be written.
    """
    from cpt_deploy.data import recipe_images
    from cpt_deploy.export import ModelIdentity, export_bundle
    from cpt_deploy.quantization import make_native, make_symmetric
    from cpt_deploy.training import load_run
    from cpt_deploy.validation.accuracy.reference import TRAINED_TEST

    run = load_run(run_dir)
    if data_dir is not None:
        data = run.recipe.data.model_copy(update={"root": str(data_dir)})
        run = replace(run, recipe=run.recipe.model_copy(update={"data": data}))
    if options.symmetric:
        make_symmetric(run.model, options.activation_bits)
    if options.native:
        make_native(run.model)
    if options.budget is None:
        widths = given_widths(run, options.bits, options.activation_bits, force=options.force)
    else:
        measure = partial(measure_on_images, run, _training_inputs)
        widths = budgeted_widths(run, options.budget, options.activation_bits, measure, force=options.force)
    note_reduced(run.model, widths.weights)
    settle_at(run, widths, _training_inputs, anew=options.native or options.symmetric)
    identity = ModelIdentity(
        name=run.recipe.name,
        architecture=run.recipe.model.name,
        labels=run.classes,
        preprocessing=run.preprocessing,
        facts={
            "dataset": dataset_name(run.recipe),
            TRAINED_DIGEST: run.weights_sha256,
            "trained_accuracy": run.report.test.top1,
            TRAINED_TEST: {"samples": run.report.test.images, "sha256": run.report.data.get("test_sha256")},
            **widths.facts,
        },
        recipe=shippable(run.recipe),
    )
    return export_bundle(
        run.model,
        destination or run_dir / f"{widths.name}{options.suffix}",
        identity,
        evenly_chosen_inputs(
            recipe_images(run.recipe.data.model_copy(update={"limit": None}), "test"), run.preprocessing
        ),
        weight_bits=widths.weights,
        activation_bits=widths.activations,
        opset=options.opset,
        formats=options.formats,
    )


def dataset_name(recipe: "Recipe") -> str:
    """Return the name of a run's data set; of one named by its path only the last part, for paths do not ship."""
    return recipe.data.name if ":" in recipe.data.name else Path(recipe.data.name).name


def shippable(recipe: "Recipe") -> str:
    """Return a recipe as YAML without the folders of the machine it ran on."""
    from cpt_deploy.recipe import recipe_text

    data = recipe.data.model_copy(update={"root": None, "name": dataset_name(recipe)})
    return recipe_text(recipe.model_copy(update={"data": data}))


def _training_inputs(run: "TrainedRun") -> Iterator["Tensor"]:
    """Yield the inputs that settling sees."""
    from cpt_deploy.training import settling_inputs

    return settling_inputs(run.recipe, run.preprocessing)


def evenly_chosen_inputs(images: "ImageSet", preprocessing: "Preprocessing") -> "Tensor":
    """Return a few images as normalised inputs, spread over the set since many sets are sorted by class."""
    import numpy as np
    import torch

    chosen = np.linspace(0, len(images) - 1, min(GOLDEN_IMAGES, len(images))).astype(int)
    return torch.from_numpy(np.stack([preprocessing.apply(images.image(int(index))) for index in chosen]))


def find_run(bundle: "OpenedBundle") -> Path | None:
    """Return the run that a bundle was exported from, if the bundle lies inside of it and its weights are the same."""
    for folder in bundle.path.resolve().parents:
        if (folder / "report.json").is_file() and is_run_of(folder, bundle):
            return folder
    return None


def is_run_of(run_dir: Path, bundle: "OpenedBundle") -> bool:
    """Return whether the trained weights of a run are those that a bundle was exported from."""
    weights = run_dir / "model.safetensors"
    if not weights.is_file():
        return False
    with weights.open("rb") as file:
        return bundle.facts.get(TRAINED_DIGEST) == hashlib.file_digest(file, "sha256").hexdigest()


def trained_reference(run_dir: Path) -> "Reference":
    """Return a run's model at its upper bound, with the run's own preprocessing, classes and accuracy.

    Raises:
        CheckpointError: If the run is unfinished or damaged.
    """
    import torch

    from cpt_deploy.training import load_run
    from cpt_deploy.validation import RecordedAccuracy, Reference

    run = load_run(run_dir)

    def forward(inputs: Any) -> Any:
        with torch.no_grad(), run.model.upper_bound():
            return run.model(torch.from_numpy(inputs)).numpy()

    test, digest = run.report.test, run.report.data.get("test_sha256")
    recorded = RecordedAccuracy(test.top1, test.images, dataset_name(run.recipe), digest)
    return Reference(forward, run.preprocessing, run.classes, formats.path(run_dir), recorded)


def _reference(bundle: "Bundle", run_dir: Path | None, source: Path | None) -> "Reference | None":
    """Return what a bundle is compared with: the model of its run, or the float model that it was made from."""
    from cpt_cli.sources import find_source, source_reference

    if run_dir is not None and not is_run_of(run_dir, bundle):
        raise UsageError(
            f"Expected the run that {formats.path(bundle.path)} was exported from, but the trained weights in "
            f"{formats.path(run_dir)} are others",
            hint="export the bundle again, or leave --run out",
        )
    found = run_dir or find_run(bundle)
    if found is not None and source is None:
        return trained_reference(found)
    file = find_source(bundle, source)
    return None if file is None else source_reference(bundle, file)


def measure_bundle(  # noqa: PLR0913  what commands are given
    bundle: "Bundle",
    data: str,
    data_dir: Path | None,
    *,
    run_dir: Path | None,
    source: Path | None = None,
    limit: int | None,
    max_drop: float | None,
    require_exact: bool,
    allow_undecided: bool = False,
    no_gate: bool = False,
    provider: str = "cpu",
) -> "ValidationReport":
    """Validate a bundle on a data set's test images and store the report in it.

    Args:
        bundle: The bundle.
        data: Name, path or import path of the data set.
        data_dir: Folder that holds it.
        run_dir: The run to compare with; the one that the bundle lies in, if there is one, if None.
        source: The float model to compare a calibrated bundle with; the one that lies around it, if there is one, if
            None.
        limit: How many images, spread over the set; all if None.
        max_drop: Most points of accuracy that may be lost; needs a run. If it is None and there is a run, 0.5 points.
        require_exact: Whether every integer must agree.
        allow_undecided: Whether samples that cannot tell the drop from what is allowed pass.
        no_gate: Whether no drop is judged.
        provider: Execution provider of onnxruntime.

    Raises:
        UsageError: If the bundle was not exported from the given run, or a drop is to be judged without one.
        CptError: As `validate` and `load_run` do.
    """
    from cpt_deploy.bundle import update_validation
    from cpt_deploy.data import load_images
    from cpt_deploy.report import render_validation_page
    from cpt_deploy.validation import validate
    from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP

    reference = _reference(bundle, run_dir, source)
    images = load_images(data, split="test", root=data_dir)
    samples = min(limit or len(images), len(images))
    if max_drop is None and reference is not None and not no_gate:
        max_drop = MAX_DROP
    with out.bar("validating", samples) as bar:
        report = validate(
            bundle,
            images,
            trained=reference,
            max_drop=max_drop,
            allow_undecided=allow_undecided,
            require_exact=require_exact,
            limit=limit,
            provider=provider,
            reporter=bar,
        )
    fields = report.to_dict()
    page = render_validation_page(fields, bundle.labels) if find_spec("matplotlib") is not None else None
    update_validation(bundle, fields, report.evaluation_results(), page=page)
    return report
