"""At which bits a run is exported: checked against those that it trained at, or chosen by layer within a budget."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cpt_cli.output import out
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cpt_deploy.training import TrainedLanguageModel, TrainedRun

    TrainingInputs = Callable[[TrainedRun], Iterator[Tensor]]

MOST_BITS = 8
SENSITIVITY_IMAGES = 256
"""Training images that each layer's sensitivity is measured on."""


@dataclass(frozen=True)
class Widths:
    """Bits of an export.

    Args:
        weights: Bits of the cycling layers' weights, or of each layer by name.
        activations: Bits of the cycling activations.
        name: The bundle's folder.
        facts: What the bundle says of the choice.
    """

    weights: int | Mapping[str, int]
    activations: int
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def bits_trained_at(run: "TrainedRun | TrainedLanguageModel") -> list[int]:
    """Return the bits of the run's schedule and its upper bound, ascending."""
    return sorted({int(entry) for entry in run.report.bits["shares"]} | {run.recipe.precision.upper})


def folder_name(weights: str, activations: int, upper: int) -> str:
    """Return the name of a bundle's folder; activations at the upper bound go without saying."""
    return f"bundle-{weights}" + ("" if activations == upper else f"-act{activations}")


def given_widths(
    run: "TrainedRun | TrainedLanguageModel", bits: int | None, activation_bits: int | None, *, force: bool
) -> Widths:
    """Return the bits asked for, the run's upper bound where nothing is.

    Raises:
        UsageError: If the run never trained at these bits and `force` is not set.
    """
    upper = min(run.recipe.precision.upper, MOST_BITS)
    weights, activations = bits or upper, activation_bits or upper
    for given in (weights, activations):
        _check_trained_at(run, given, force=force)
    return Widths(weights, activations, folder_name(f"{weights}bit", activations, upper))


def budgeted_widths(
    run: "TrainedRun", budget: float, activation_bits: int | None, inputs: "TrainingInputs", *, force: bool
) -> Widths:
    """Choose bits for each layer by its measured sensitivity, so that all weights stay within a budget.

    Args:
        run: The run; its model is settled at the activations' bits.
        budget: Most size of all weights, as a fraction of their size at 8 bits.
        activation_bits: Bits of the cycling activations; the upper bound if None.
        inputs: Yields training batches.
        force: Whether activations may have bits that the run never trained at.

    Raises:
        UsageError: If the budget cannot be met with the bits that the run trained at.
    """
    from cpt_deploy.quantization import allocate_bits, measure_sensitivity

    model, upper = run.model, min(run.recipe.precision.upper, MOST_BITS)
    activations = activation_bits or upper
    _check_trained_at(run, activations, force=force)
    candidates = [bits for bits in bits_trained_at(run) if bits <= MOST_BITS]
    held = sum(layer.weights for layer in model.layers() if layer.role == "hold")
    cycling = [layer for layer in model.layers() if layer.role != "hold"]
    settle_at(run, Widths(upper, activations, ""), inputs)
    batches = _first_batches(inputs(run))
    images = sum(len(batch) for batch in batches)
    with out.bar("measuring sensitivity", len(cycling)) as bar:
        layers = measure_sensitivity(model, batches, candidates, activation_bits=activations, progress=bar.advance)
    bits = allocate_bits(layers, budget=budget, held_weights=held, upper=upper)
    total = sum(layer.weights for layer in model.layers())
    size = (upper * held + sum(bits[layer.name] * layer.weights for layer in layers)) / (MOST_BITS * total)
    facts = {
        "budget": budget,
        "size_of_8_bits": round(size, 4),
        "sensitivity_images": images,
        "layers": [
            {
                "layer": layer.name,
                "weights": layer.weights,
                "bits": bits[layer.name],
                "divergence": {str(candidate): round(value, 8) for candidate, value in layer.divergence.items()},
            }
            for layer in layers
        ],
    }
    name = folder_name(f"budget{100 * budget:g}", activations, upper)
    return Widths(bits, activations, name, {"mixed_precision": facts})


def settle_at(run: "TrainedRun", widths: Widths, inputs: "TrainingInputs", *, anew: bool = False) -> None:
    """Estimate BatchNorm statistics and activation ranges anew, unless a run was settled at these bits by training.

    Args:
        run: The run, whose model is settled.
        widths: The bits.
        inputs: Yields training batches.
        anew: Whether to settle in any case, since the codes have changed otherwise.
    """
    from cpt_deploy.quantization import settle

    upper = run.recipe.precision.upper
    if not anew and widths.weights == upper and widths.activations == upper:
        return
    used = settle(run.model, inputs(run), weight_bits=widths.weights, activation_bits=widths.activations)
    weights = f"{widths.weights} bits" if isinstance(widths.weights, int) else "bits by layer"
    activations = "" if widths.activations == upper else f", activations at {widths.activations} bits,"
    out.note(
        f"settled BatchNorm statistics and activation ranges with weights at {weights}{activations} on {used} "
        "training batches"
    )


def _first_batches(batches: Iterator["Tensor"]) -> list["Tensor"]:
    """Return batches until they hold the images that sensitivity is measured on, if there are so many."""
    taken: list[Tensor] = []
    missing = SENSITIVITY_IMAGES
    for batch in batches:
        taken.append(batch[:missing])
        missing -= len(taken[-1])
        if missing <= 0:
            break
    return taken


def _check_trained_at(run: "TrainedRun | TrainedLanguageModel", bits: int, *, force: bool) -> None:
    trained_at = bits_trained_at(run)
    if bits in trained_at or force:
        return
    raise UsageError(
        f"Expected bits that the run trained at ({', '.join(map(str, trained_at))}), but got {bits}",
        hint="the accuracy at other bits can be anything; --force exports all the same",
    )
