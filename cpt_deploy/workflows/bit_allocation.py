"""Determine the bits of a run's export: requested and checked against its training, or chosen per layer by a budget."""

from typing import TYPE_CHECKING

from cpt_deploy.errors import UsageError
from cpt_deploy.tasks.exporting import MAX_BITS, BitAllocation, folder_name
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    from cpt_deploy.tasks.run_export import RunExport
    from cpt_deploy.training import TrainedRun


def bits_trained_at(run: "TrainedRun") -> list[int]:
    """Return the bits of the run's schedule and max_bits, ascending; not those of its steps in float32."""
    max_bits = run.recipe.precision.max_bits
    return sorted({bits for entry in run.report.bits["shares"] if (bits := int(entry)) <= max_bits} | {max_bits})


def given_bits(run: "TrainedRun", bits: int | None, activation_bits: int | None, *, force: bool) -> BitAllocation:
    """Return the requested bits; None is the run's max_bits.

    Raises:
        UsageError: If the run never trained at these bits and `force` is not set.
    """
    max_bits = min(run.recipe.precision.max_bits, MAX_BITS)
    weights, activations = bits or max_bits, activation_bits or max_bits
    for given in (weights, activations):
        _check_trained_at(run, given, force=force)
    return BitAllocation(weights, activations, folder_name(f"{weights}bit", activations, max_bits))


def allocated_bits(
    export: "RunExport", budget: float, activation_bits: int | None, reporter: Reporter, *, force: bool
) -> BitAllocation:
    """Choose bits for each layer by its measured sensitivity, so that all weights stay within a budget.

    Args:
        export: The export of the run, whose model is calibrated at max_bits.
        budget: Maximum size of all weights, as a fraction of their size at 8 bits.
        activation_bits: Bits of the scheduled activations; None is max_bits.
        reporter: Receives messages and progress.
        force: Whether activations may have bits that the run never trained at.

    Raises:
        UsageError: If the budget cannot be met with the bits that the run trained at.
    """
    from cpt_deploy.quantization import allocate_bits

    run = export.run
    max_bits = min(run.recipe.precision.max_bits, MAX_BITS)
    activations = activation_bits or max_bits
    _check_trained_at(run, activations, force=force)
    calibrate(export, BitAllocation(max_bits, activations), reporter)
    candidates = [bits for bits in bits_trained_at(run) if bits <= MAX_BITS]
    measured = export.measure_sensitivity(candidates, activations, reporter)
    total = sum(layer.weights for layer in run.model.layers())
    held = total - sum(layer.weights for layer in measured.layers)
    bits = allocate_bits(measured.layers, budget=budget, fixed_weights=held, max_bits=max_bits)
    size = (max_bits * held + sum(bits[layer.name] * layer.weights for layer in measured.layers)) / (MAX_BITS * total)
    facts = {
        "budget": budget,
        "size_of_8_bits": round(size, 4),
        "cost": measured.measure,
        "layers": [
            {
                "layer": layer.name,
                "weights": layer.weights,
                "bits": bits[layer.name],
                "cost": {str(candidate): round(value, 8) for candidate, value in layer.cost.items()},
            }
            for layer in measured.layers
        ],
    }
    folder = folder_name(f"budget{100 * budget:g}", activations, max_bits)
    return BitAllocation(bits, activations, folder, {"mixed_precision": facts})


def calibrate(export: "RunExport", bits: BitAllocation, reporter: Reporter, *, anew: bool = False) -> None:
    """Calibrate a run's model, unless training calibrated it at these bits.

    Args:
        export: The export of the run.
        bits: The bits.
        reporter: Receives messages and progress.
        anew: Whether to calibrate in any case, since ranges were changed.
    """
    if anew or not bits.are(export.run.recipe.precision.max_bits):
        export.calibrate(bits, reporter)


def _check_trained_at(run: "TrainedRun", bits: int, *, force: bool) -> None:
    trained_at = bits_trained_at(run)
    if bits in trained_at or force:
        return
    raise UsageError(
        f"Expected bits that the run trained at ({', '.join(map(str, trained_at))}), but got {bits}",
        hint="the accuracy at other bits can be anything; --force exports all the same",
    )
