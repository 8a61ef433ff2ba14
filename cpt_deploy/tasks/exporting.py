"""What an export is asked for and what is said of it, whatever the task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.recipe import Recipe, recipe_text

if TYPE_CHECKING:
    from cpt_deploy.quantization import LayerSensitivity

MOST_BITS = 8
TRAINED_DIGEST = "trained_sha256"
"""The fact in a bundle's config.json that names the trained weights it was made from."""
SOURCE_FILE, SOURCE_DIGEST, SOURCE_MODEL = "source_file", "source_sha256", "source_model"
"""The facts that name the file of a float model it was made from, and the model that weights belong to."""


@dataclass(frozen=True)
class ExportOptions:
    """What an export can be asked for.

    Args:
        bits: Bits of the weights; the run's max_bits, at most 8, if None.
        activation_bits: Bits of the scheduled activations; max_bits likewise if None.
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


@dataclass(frozen=True)
class BitAllocation:
    """Bits of an export.

    Args:
        weights: Bits of the scheduled layers' weights, or of each layer by name.
        activations: Bits of the scheduled activations.
        folder: Name of the bundle's folder.
        facts: What the bundle says of the choice.
    """

    weights: int | Mapping[str, int]
    activations: int
    folder: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def are(self, bits: int) -> bool:
        """Return whether weights and activations all have these bits."""
        return self.weights == bits == self.activations

    def describe(self, max_bits: int) -> str:
        """Return them in words; activations at max_bits go without saying."""
        weights = f"{self.weights} bits" if isinstance(self.weights, int) else "bits by layer"
        activations = "" if self.activations == max_bits else f", activations at {self.activations} bits,"
        return f"weights at {weights}{activations}"


@dataclass(frozen=True)
class Sensitivity:
    """What fewer bits do to the layers of a run.

    Args:
        layers: Of each scheduled layer.
        cost: What the bundle calls their costs.
        facts: What it says of the samples that they were measured on.
    """

    layers: "Sequence[LayerSensitivity]"
    cost: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ExportSummary:
    """What is said of a bundle that was just written.

    Args:
        golden: How onnxruntime on this machine did on its golden sample.
        reproduced: Whether that was good enough.
        differs: In words, in what it was not.
        title: What follows after its name: its bits, and what sets it apart.
        facts: What is worth knowing of it, by name.
        content: What scripts are told of it beside that.
    """

    golden: Any
    reproduced: bool
    differs: str
    title: str
    facts: Mapping[str, str]
    content: Mapping[str, Any] = field(default_factory=dict)


def weights_in_words(facts: Mapping[str, Any]) -> str:
    """Return what stands behind the name of an exported model: its bits."""
    return (
        f" with weights of {facts['weight_bits']} bits"
        + (" on average" if "mixed_precision" in facts else "")
        + f", activations of {facts['activation_bits']}"
    )


def dataset_name(name: str) -> str:
    """Return the name of a data set as a bundle says it: of a path only the last part, for paths do not ship."""
    return name if ":" in name else Path(name).name


def shippable(recipe: Recipe) -> str:
    """Return a recipe as YAML without the folders of the machine it ran on."""
    data = recipe.data.model_copy(update={"root": None, "name": dataset_name(recipe.data.name)})
    return recipe_text(recipe.model_copy(update={"data": data}))
