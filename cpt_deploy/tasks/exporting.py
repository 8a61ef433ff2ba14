"""Options and results of an export, for every task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.bundle.processors.pixel_format import PixelFormat
from cpt_deploy.recipe import Recipe, recipe_text
from cpt_deploy.registry import ONNX_FILE, source_file

if TYPE_CHECKING:
    from cpt_deploy.quantization import LayerSensitivity

MAX_BITS = 8
TRAINED_DIGEST = "trained_sha256"
"""Key in a bundle's config.json: digest of the trained weights that it was made from."""
SOURCE_FILE, SOURCE_DIGEST, SOURCE_MODEL = "source_file", "source_sha256", "source_model"
"""Keys of the float model that a bundle was made from: its file, and the model that its weights belong to."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Args:
        bits: Bits of the weights; None is the run's max_bits, at most 8.
        activation_bits: Bits of the scheduled activations; None is max_bits likewise.
        budget: Maximum size of the weights, as a fraction of that at 8 bits, instead of `bits`: chooses bits per layer.
        native: Whether weights keep their full range, though sums of two products may saturate on x86 without VNNI.
        symmetric: Whether activations are int8 with a zero point of 0, for TensorRT and similar engines.
        opset: ONNX opset; None is the lowest with the smallest types for the weights.
        formats: Further formats of the model, keys of `cpt_deploy.bundle.FORMATS`.
        force: Whether to export at bits that the run never trained at.
        pixels: The bytes of images that the bundle's files take themselves; None if they take normalised images.
    """

    bits: int | None = None
    activation_bits: int | None = None
    budget: float | None = None
    native: bool = False
    symmetric: bool = False
    opset: int | None = None
    formats: Sequence[str] = ()
    force: bool = False
    pixels: PixelFormat | None = None

    @property
    def suffix(self) -> str:
        """Suffix of the name of a bundle's folder, after the bits."""
        return "".join(
            f"-{name}"
            for name, is_set in (("native", self.native), ("symmetric", self.symmetric), ("uint8", self.pixels))
            if is_set
        )


def folder_name(weights: str, activations: int, max_bits: int) -> str:
    """Return the name of a bundle's folder; activations at max_bits are not mentioned."""
    return f"bundle-{weights}" + ("" if activations == max_bits else f"-act{activations}")


@dataclass(frozen=True)
class BitAllocation:
    """Bits of an export.

    Args:
        weights: Bits of the scheduled layers' weights, or of each layer by name.
        activations: Bits of the scheduled activations.
        folder: Name of the bundle's folder.
        facts: Facts about the choice for the bundle.
    """

    weights: int | Mapping[str, int]
    activations: int
    folder: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def are(self, bits: int) -> bool:
        """Return whether weights and activations all have these bits."""
        return self.weights == bits == self.activations

    def describe(self, max_bits: int) -> str:
        """Describe the bits in words; activations at max_bits are not mentioned."""
        weights = f"{self.weights} bits" if isinstance(self.weights, int) else "bits by layer"
        activations = "" if self.activations == max_bits else f", activations at {self.activations} bits,"
        return f"weights at {weights}{activations}"


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a run's layers to fewer bits.

    Args:
        layers: Sensitivity of each scheduled layer.
        measure: The measured cost in words, with its samples.
    """

    layers: "Sequence[LayerSensitivity]"
    measure: str


@dataclass(frozen=True)
class ExportSummary:
    """Summary of a bundle that was just written.

    Args:
        golden: Results of onnxruntime on this machine on the golden sample.
        reproduced: Whether it reproduces the golden sample.
        differs: The mismatch in words.
        title: Text after its name: its bits, and its other options.
        facts: Facts to print, by name.
        content: Further content of the JSON output for scripts.
    """

    golden: Any
    reproduced: bool
    differs: str
    title: str
    facts: Mapping[str, str]
    content: Mapping[str, Any] = field(default_factory=dict)


def weights_in_words(facts: Mapping[str, Any]) -> str:
    """Describe the bits of an exported model, as text after its name."""
    return (
        f" with weights of {facts['weight_bits']} bits"
        + (" on average" if "mixed_precision" in facts else "")
        + f", activations of {facts['activation_bits']}"
    )


def dataset_name(name: str) -> str:
    """Return the name of a data set for a bundle: of a path the last part, since bundles must not contain paths."""
    return Path(name).name


def without_folder(value: Any) -> Any:
    """Return settings for a bundle: names of files with code or models, at any depth, without their folders."""
    if isinstance(value, dict):
        return {key: without_folder(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folder(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith(ONNX_FILE):
        return ONNX_FILE + Path(value.removeprefix(ONNX_FILE)).name
    return Path(value).name if source_file(value) is not None else value


def shippable(recipe: Recipe) -> str:
    """Return a recipe as YAML without the folders of the machine it ran on."""
    values = without_folder(recipe.model_dump(mode="json"))
    values["data"] |= {"root": None, "name": dataset_name(recipe.data.name)}
    if recipe.model.weights is not None:
        values["model"]["weights"] = Path(recipe.model.weights).name
    return recipe_text(values)
