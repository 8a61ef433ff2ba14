"""At which bits a run is exported: checked against those that it trained at, or chosen by layer within a budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cpt_cli.output import Bar, out
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cpt_deploy.quantization import LayerSensitivity
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

    def are(self, bits: int) -> bool:
        """Return whether weights and activations all have these bits."""
        return self.weights == bits == self.activations

    def describe(self, upper: int) -> str:
        """Return them in words; activations at the upper bound go without saying."""
        weights = f"{self.weights} bits" if isinstance(self.weights, int) else "bits by layer"
        activations = "" if self.activations == upper else f", activations at {self.activations} bits,"
        return f"weights at {weights}{activations}"


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


@dataclass(frozen=True)
class Sensitivity:
    """What fewer bits do to the layers of a run.

    Args:
        layers: Of each cycling layer.
        cost: What the bundle calls their costs.
        facts: What it says of the samples that they were measured on.
    """

    layers: "Sequence[LayerSensitivity]"
    cost: str
    facts: Mapping[str, Any]


def budgeted_widths(
    run: "TrainedRun | TrainedLanguageModel",
    budget: float,
    activation_bits: int | None,
    measure: Callable[[Sequence[int], int], Sensitivity],
    *,
    force: bool,
) -> Widths:
    """Choose bits for each layer by its measured sensitivity, so that all weights stay within a budget.

    Args:
        run: The run.
        budget: Most size of all weights, as a fraction of their size at 8 bits.
        activation_bits: Bits of the cycling activations; the upper bound if None.
        measure: Measures sensitivity, given the bits to try and those of the activations.
        force: Whether activations may have bits that the run never trained at.

    Raises:
        UsageError: If the budget cannot be met with the bits that the run trained at.
    """
    from cpt_deploy.quantization import allocate_bits

    upper = min(run.recipe.precision.upper, MOST_BITS)
    activations = activation_bits or upper
    _check_trained_at(run, activations, force=force)
    measured = measure([bits for bits in bits_trained_at(run) if bits <= MOST_BITS], activations)
    total = sum(layer.weights for layer in run.model.layers())
    held = total - sum(layer.weights for layer in measured.layers)
    bits = allocate_bits(measured.layers, budget=budget, held_weights=held, upper=upper)
    size = (upper * held + sum(bits[layer.name] * layer.weights for layer in measured.layers)) / (MOST_BITS * total)
    facts = {
        "budget": budget,
        "size_of_8_bits": round(size, 4),
        **measured.facts,
        "layers": [
            {
                "layer": layer.name,
                "weights": layer.weights,
                "bits": bits[layer.name],
                measured.cost: {str(candidate): round(value, 8) for candidate, value in layer.cost.items()},
            }
            for layer in measured.layers
        ],
    }
    name = folder_name(f"budget{100 * budget:g}", activations, upper)
    return Widths(bits, activations, name, {"mixed_precision": facts})


def measure_on_images(
    run: "TrainedRun", inputs: "TrainingInputs", candidates: Sequence[int], activations: int
) -> Sensitivity:
    """Settle a run's model at its upper bound, and measure what fewer bits do to the class probabilities.

    Args:
        run: The run.
        inputs: Yields training batches.
        candidates: Bits to try in each layer.
        activations: Bits of the cycling activations.
    """
    from cpt_deploy.quantization import measure_sensitivity

    settle_at(run, Widths(min(run.recipe.precision.upper, MOST_BITS), activations, ""), inputs)
    batches = _first_batches(inputs(run))
    with sensitivity_bar(run) as bar:
        layers = measure_sensitivity(run.model, batches, candidates, activation_bits=activations, progress=bar.advance)
    return Sensitivity(layers, "divergence", {"sensitivity_images": sum(len(batch) for batch in batches)})


def sensitivity_bar(run: "TrainedRun | TrainedLanguageModel") -> AbstractContextManager[Bar]:
    """Return a bar of the layers whose sensitivity is measured."""
    cycling = sum(layer.role != "hold" for layer in run.model.layers())
    return out.bar("measuring sensitivity", cycling)


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
    if not anew and widths.are(upper):
        return
    used = settle(run.model, inputs(run), weight_bits=widths.weights, activation_bits=widths.activations)
    out.note(
        f"settled BatchNorm statistics and activation ranges with {widths.describe(upper)} on {used} training batches"
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
