"""The steps between the library's parts that commands share: from a run to a bundle, and from a bundle to its run."""

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_cli import formats
from cpt_cli.output import out
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cpt_deploy.bundle import Bundle
    from cpt_deploy.recipe import Recipe
    from cpt_deploy.training import TrainedRun, TrainPlan
    from cpt_deploy.validation import TrainedModel, ValidationReport

GOLDEN_IMAGES = 8
TRAINED_DIGEST = "trained_sha256"
"""The fact in a bundle's config.json that names the trained weights it was made from."""


def export_run(
    run_dir: Path, *, bits: int | None, destination: Path | None, opset: int | None = None, force: bool = False
) -> "Bundle":
    """Freeze the trained model of a run and write its bundle.

    Args:
        run_dir: The directory of the run.
        bits: Bits of the weights; the run's upper bound if None.
        destination: Where to write; `RUN/bundle-<bits>bit` if None.
        opset: ONNX opset; the exporter's default if None.
        force: Whether to export at bits that the run never trained at.

    Raises:
        UsageError: If the run never trained at these bits and `force` is not set.
        CheckpointError: If the run is unfinished or damaged.
        BundleError: If the bundle cannot be written.
    """
    from cpt_deploy.export import DEFAULT_OPSET, ModelIdentity, export_bundle
    from cpt_deploy.training import load_run

    run = load_run(run_dir)
    upper = run.recipe.precision.upper
    weight_bits = bits or upper
    _check_trained_at(run, weight_bits, force=force)
    if weight_bits != upper:
        _settle_at(run, weight_bits)
    identity = ModelIdentity(
        name=run.recipe.name,
        architecture=run.recipe.model.name,
        labels=run.classes,
        preprocessing=run.preprocessing,
        facts={
            "dataset": run.recipe.data.name,
            TRAINED_DIGEST: run.weights_sha256,
            "trained_accuracy": run.report.test.top1,
        },
        recipe=(run_dir / "recipe.yaml").read_text(encoding="utf-8"),
    )
    return export_bundle(
        run.model,
        destination or run_dir / f"bundle-{weight_bits}bit",
        identity,
        _golden_inputs(run),
        weight_bits=weight_bits,
        opset=opset or DEFAULT_OPSET,
    )


def _check_trained_at(run: "TrainedRun", bits: int, *, force: bool) -> None:
    trained_at = sorted({int(entry) for entry in run.report.bits["shares"]} | {run.recipe.precision.upper})
    if bits in trained_at or force:
        return
    raise UsageError(
        f"Expected bits that the run trained at ({', '.join(map(str, trained_at))}), but got {bits}",
        hint="the accuracy at other bits can be anything; --force exports all the same",
    )


def _settle_at(run: "TrainedRun", bits: int) -> None:
    from cpt_deploy.quantization import settle

    used = settle(run.model, _training_inputs(run), weight_bits=bits)
    out.note(f"settled BatchNorm statistics and activation ranges at {bits} bits on {used} training batches")


def _training_inputs(run: "TrainedRun") -> Iterator["Tensor"]:
    """Yield the inputs that settling sees: training batches, as augmented, from epoch 0 on."""
    from cpt_deploy.data import build_augmentations, load_images, train_loader

    recipe = run.recipe
    images = load_images(recipe.data.name, split="train", root=_root(recipe.data.root))
    augment = build_augmentations(
        [(step.name, step.parameters) for step in recipe.data.augment], run.preprocessing.size
    )
    wanted, epoch = max(recipe.train.settle_batches, 1), 0
    while wanted > 0:
        for inputs, _ in train_loader(
            images, run.preprocessing, augment, batch_size=recipe.train.batch_size, seed=recipe.seed, epoch=epoch
        ):
            yield inputs
            wanted -= 1
            if wanted == 0:
                return
        epoch += 1


def _golden_inputs(run: "TrainedRun") -> "Tensor":
    """Return a few test images as normalised inputs, spread over the set since many sets are sorted by class."""
    import numpy as np
    import torch

    from cpt_deploy.data import load_images

    images = load_images(run.recipe.data.name, split="test", root=_root(run.recipe.data.root))
    chosen = np.linspace(0, len(images) - 1, min(GOLDEN_IMAGES, len(images))).astype(int)
    return torch.from_numpy(np.stack([run.preprocessing.apply(images.image(int(index))) for index in chosen]))


def _root(root: str | None) -> Path | None:
    return None if root is None else Path(root)


def find_run(bundle: "Bundle") -> Path | None:
    """Return the run that a bundle was exported from, if the bundle lies inside of it and its weights are the same."""
    for folder in bundle.path.resolve().parents:
        if (folder / "report.json").is_file() and is_run_of(folder, bundle):
            return folder
    return None


def is_run_of(run_dir: Path, bundle: "Bundle") -> bool:
    """Return whether the trained weights of a run are those that a bundle was exported from."""
    weights = run_dir / "model.safetensors"
    if not weights.is_file():
        return False
    with weights.open("rb") as file:
        return bundle.facts.get(TRAINED_DIGEST) == hashlib.file_digest(file, "sha256").hexdigest()


def trained_model(run_dir: Path) -> "TrainedModel":
    """Return a run's model at its upper bound as a function from inputs to logits, both NumPy float32 arrays.

    Raises:
        CheckpointError: If the run is unfinished or damaged.
    """
    import torch

    from cpt_deploy.training import load_run

    model = load_run(run_dir).model

    def forward(inputs: Any) -> Any:
        with torch.no_grad(), model.upper_bound():
            return model(torch.from_numpy(inputs)).numpy()

    return forward


def measure_bundle(
    bundle: "Bundle",
    data: str,
    data_dir: Path | None,
    *,
    run_dir: Path | None,
    limit: int | None,
    max_drop: float | None,
    default_max_drop: float,
    require_exact: bool,
) -> "ValidationReport":
    """Validate a bundle on a data set's test images and store the report in it.

    Args:
        bundle: The bundle.
        data: Name, path or import path of the data set.
        data_dir: Folder that holds it.
        run_dir: The run to compare with; the one that the bundle lies in, if there is one, if None.
        limit: How many images, spread over the set; all if None.
        max_drop: Most points of accuracy that may be lost; needs a run.
        default_max_drop: What `max_drop` is when it is None and a run is there.
        require_exact: Whether every integer must agree.

    Raises:
        UsageError: If the bundle was not exported from the given run, or a drop is to be judged without one.
        CptError: As `validate` and `load_run` do.
    """
    from cpt_deploy.bundle import update_validation
    from cpt_deploy.data import load_images
    from cpt_deploy.report import render_validation_page
    from cpt_deploy.validation import validate

    found = run_dir or find_run(bundle)
    if run_dir is not None and not is_run_of(run_dir, bundle):
        raise UsageError(
            f"Expected the run that {formats.path(bundle.path)} was exported from, but the trained weights in "
            f"{formats.path(run_dir)} are others",
            hint="export the bundle again, or leave --run out",
        )
    images = load_images(data, split="test", root=data_dir)
    with out.bar("validating", min(limit or len(images), len(images))) as bar:
        report = validate(
            bundle,
            images,
            trained=trained_model(found) if found else None,
            max_drop=default_max_drop if max_drop is None and found else max_drop,
            require_exact=require_exact,
            limit=limit,
            reporter=bar,
        )
    fields = report.to_dict()
    page = render_validation_page(fields, bundle.labels) if find_spec("matplotlib") is not None else None
    update_validation(bundle, fields, report.evaluation_results(), page=page)
    return report


def plan_run(recipe: "Recipe", run_dir: Path) -> "TrainPlan":
    """Return what a run would do, without writing anything.

    Raises:
        CptError: If data, model or settings do not fit; what `train` would say.
    """
    from cpt_deploy.precision import relative_cost
    from cpt_deploy.training import TrainPlan
    from cpt_deploy.training.setup import build_objects, load_data

    data = load_data(recipe)
    objects = build_objects(data)
    upper = recipe.precision.upper
    return TrainPlan(
        run_dir=run_dir,
        recipe=data.recipe,
        device=str(objects.device),
        parameters=objects.parameters,
        macs=sum(layer.macs for layer in objects.model.layers()),
        layers=objects.layers_by_role,
        train_images=len(data.train),
        test_images=len(data.test),
        classes=len(data.train.classes),
        steps_per_epoch=data.steps_per_epoch,
        total_steps=data.total_steps,
        first_step=0,
        relative_cost=relative_cost(objects.forward, objects.backward, data.total_steps, reference_bits=upper),
    )
