"""Export a run to the bundle that ships."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.bundle.opened import OpenedBundle
from cpt_deploy.tasks import SILENT, ExportOptions, ExportSummary, Reporter, task_of_bundle, task_of_run
from cpt_deploy.workflows.bit_allocation import allocated_bits, calibrate, given_bits

if TYPE_CHECKING:
    from cpt_deploy.quantization import ScheduledModel, WeightBits


def export_run(
    run_dir: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  it is frozen
    *,
    destination: Path | None = None,
    data_dir: Path | None = None,
    reporter: Reporter = SILENT,
) -> OpenedBundle:
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
        UsageError: If the task does not support an option, the run never trained at these bits and `force` is not set,
            or the budget cannot be met.
        ConversionError: If the model cannot be written in one of the formats.
        CheckpointError: If the run is unfinished or damaged.
        BundleError: If the bundle cannot be written.
    """
    export = task_of_run(run_dir).begin_export(run_dir, options, data_dir)
    changed = export.change_ranges()
    if options.budget is None:
        bits = given_bits(export.run, options.bits, options.activation_bits, force=options.force)
    else:
        bits = allocated_bits(export, options.budget, options.activation_bits, reporter, force=options.force)
    note_reduced(export.run.model, bits.weights, reporter)
    calibrate(export, bits, reporter, anew=changed)
    return export.write(destination or run_dir / f"{bits.folder}{options.suffix}", bits)


def describe_export(bundle: OpenedBundle) -> ExportSummary:
    """Describe a bundle, and whether onnxruntime on this machine reproduces its golden sample."""
    return task_of_bundle(bundle.path).describe_export(bundle)


def note_reduced(model: "ScheduledModel", weight_bits: "WeightBits", reporter: Reporter) -> None:
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
