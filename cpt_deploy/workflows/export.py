"""Export a run to the bundle that ships."""

import filecmp
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.errors import CheckpointError, TrainingOnlyError
from cpt_deploy.recipe import load_recipe, save_recipe
from cpt_deploy.tasks import SILENT, ExportOptions, ExportSummary, Reporter, task_of_run
from cpt_deploy.tasks.exporting import weights_in_words
from cpt_deploy.workflows.bit_allocation import allocated_bits, calibrate, given_bits

if TYPE_CHECKING:
    from cpt_deploy.quantization import QuantizedModel, WeightBits


def export_run(
    run_dir: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  it is frozen
    *,
    destination: Path | None = None,
    data_dir: Path | None = None,
    reporter: Reporter = SILENT,
) -> Bundle:
    """Freeze the trained model of a run and write its bundle.

    Args:
        run_dir: The directory of the run.
        options: Bits and formats of the bundle.
        destination: Directory of the bundle; None is `RUN/bundle-<bits>bit` or similar. An existing bundle is replaced.
        data_dir: Folder of the data set; None is the recipe's.
        reporter: Receives messages and progress.

    Returns:
        The bundle, opened and verified.

    Raises:
        UsageError: If the run never trained at these bits and `force` is not set,
            or the budget cannot be met.
        ConversionError: If the model cannot be written in one of the formats, or is of a scheme that trains only.
        CheckpointError: If the run is unfinished or damaged.
        BundleError: If the bundle cannot be written.
    """
    from cpt_deploy.tasks.run_export import begin_export

    export = begin_export(task_of_run(run_dir), run_dir, options, data_dir)
    changed = export.change_ranges()
    if options.budget is None:
        bits = given_bits(export.run, options.bits, options.activation_bits, force=options.force)
    else:
        bits = allocated_bits(export, options.budget, options.activation_bits, reporter, force=options.force)
    note_reduced(export.run.model, bits.weights, reporter)
    calibrate(export, bits, reporter, anew=changed)
    return export.write(destination or run_dir / f"{bits.folder}{options.suffix}", bits)


def best_of(run_dir: Path, reporter: Reporter = SILENT) -> Path:
    """Return a run that ends with the best evaluation of a finished run: the directory `best` in it, made if needed.

    Its model is that of the checkpoint, calibrated and evaluated as at the end of a run.

    Args:
        run_dir: The finished run.
        reporter: Receives a message.

    Raises:
        CheckpointError: If the run is unfinished or damaged.
        ConversionError: If the run is of the scheme "sbm", which trains only.
        DataError: If its data cannot be read.
    """
    from cpt_deploy.training import RunDirectory, RunReport, train

    origin, best = RunDirectory(run_dir), RunDirectory(run_dir / "best")
    report = RunReport.read(origin.report)
    recipe = load_recipe(origin.recipe)
    if recipe.quantization.scheme == "sbm":
        raise TrainingOnlyError
    if recipe.train.final == "best":
        return run_dir
    if best.report.is_file() and filecmp.cmp(origin.best, best.best, shallow=False):
        return best.path
    for checkpoint in (origin.last, origin.best):
        if not checkpoint.is_file():
            raise CheckpointError(
                f"Expected the checkpoint {checkpoint}, but there is none",
                hint="without its checkpoints a run can be exported as it ended: cpt export without --checkpoint",
            )
    shutil.rmtree(best.path, ignore_errors=True)
    best.last.parent.mkdir(parents=True)
    copied = (origin.last, origin.best, origin.metrics, origin.tokenizer)
    for file in filter(Path.is_file, copied):
        shutil.copyfile(file, best.path / file.relative_to(run_dir))
    swa = recipe.train.swa.model_copy(update={"enabled": False})
    # Nothing is trained any more, so any device will do.
    settings = recipe.train.model_copy(update={"final": "best", "swa": swa, "device": "auto", "cuda_graph": False})
    recipe = recipe.model_copy(update={"train": settings})
    save_recipe(recipe, best.recipe)
    chosen = train(recipe, best.path, resume=True)
    metric, evaluation = chosen.metric, report.best
    step = "" if evaluation is None else f" of step {evaluation.step:,}"
    reporter.note(
        f"calibrated the best checkpoint,{step}: {metric.title} {metric.text(chosen.figure)}, where the last one has "
        f"{metric.text(report.figure)}"
    )
    return best.path


def describe_export(bundle: Bundle) -> ExportSummary:
    """Describe a bundle, and whether onnxruntime on this machine reproduces its golden sample."""
    facts = bundle.facts
    check = OnnxRuntimeModel(bundle.onnx_path, bundle.signature).reproduce_golden(bundle.golden)
    same = f"all {check.values} {check.what} of the golden sample are reproduced"
    differs = f"{check.mismatches} of {check.values} {check.what} of the golden sample are not reproduced"
    title = (
        (", calibrated only," if bundle.calibrated else "")
        + weights_in_words(facts)
        + (", symmetric" if "activations" in facts else "")
    )
    shown = {"computes on": _computes_on(facts), "in onnxruntime": same if check.reproduced else differs}
    return ExportSummary(check, check.reproduced, differs, title, shown, {"formats": bundle.formats})


def _computes_on(facts: Mapping[str, Any]) -> str:
    if "computed_in_float" not in facts:
        return "integers from end to end"
    share, named, reason = (facts[key] for key in ("MACs_on_integers", "computed_in_float", "why_in_float"))
    return f"{share} of the MACs on integers; in float {named}, since {reason}"


def note_reduced(model: "QuantizedModel", weight_bits: "WeightBits", reporter: Reporter) -> None:
    """Report the layers whose range is reduced so that none of their sums saturates or overflows.

    Args:
        model: The model.
        weight_bits: Bits of the scheduled weights that will be exported, or of each layer by name.
        reporter: Receives the message.
    """
    from cpt_deploy.quantization import reduced_layers

    reduced = reduced_layers(model, weight_bits)
    if reduced:
        channels = sum(layer.reduced_channels for layer in reduced)
        reporter.note(
            f"weights have a smaller range in {channels} channels of {len(reduced)} layers, so that sums are exact on "
            f"any processor; the smallest is ±{min(layer.min_quant_max for layer in reduced)} instead of ±127"
        )
