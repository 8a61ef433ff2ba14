"""A run that begins with the weights of a file: which file, that it is still the same, and what of it was taken."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models.auxiliary_heads import split_auxiliary_heads
from cpt_deploy.models.pretrained import last_layer, load_pretrained, read_pretrained
from cpt_deploy.models.torchvision_models import PREFIX, Normalization, published_normalization
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.recipe import Recipe
from cpt_deploy.training.loop.setup import build_network, prepare_network
from cpt_deploy.training.run_directory.run_directory import RunDirectory


@dataclass(frozen=True)
class Pretrained:
    """What a run began with.

    Args:
        file: Path of the weights.
        sha256: SHA-256 of the file.
        tensors: How many tensors were loaded.
        head: Name of the layer that gives the logits.
        fresh: The tensors of it that stayed at their initialisation, since the file's are for other classes.
        classes: How many classes the file's head has.
        left_out: Paths of the heads in the file that only help training, which the network is built without.
        published_input: Normalisation of the images that torchvision's published weights of this model read, if the
            run's images have another one.
    """

    file: str
    sha256: str
    tensors: int
    head: str | None
    fresh: tuple[str, ...]
    classes: int | None
    left_out: tuple[str, ...] = ()
    published_input: Normalization | None = None


def resolve_weights(recipe: Recipe) -> Recipe:
    """Return a recipe that names the file of its weights wherever it is read, and the digest of what is in it.

    Raises:
        DataError: If there is no such file, or it is not the one whose digest the recipe has.
    """
    settings = recipe.model
    if settings.weights is None:
        return recipe
    path = Path(settings.weights).expanduser().resolve()
    path = RunDirectory(path).weights if path.is_dir() else path
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"Expected the weights to begin with at {path}, but got: {error.strerror or error}",
            hint="model.weights names a .pth, .pt or .safetensors file, or the directory of a finished run; nothing is "
            "downloaded",
        ) from error
    if settings.weights_sha256 not in (None, digest):
        raise DataError(
            f"Expected the weights that the recipe's model.weights_sha256 {settings.weights_sha256} names at {path}, "
            f"but they are others, of SHA-256 {digest}",
            hint="a run goes on with the file that it began with; it may lie elsewhere: model.weights=PATH",
        )
    model = settings.model_copy(update={"weights": str(path), "weights_sha256": digest})
    return recipe.model_copy(update={"model": model})


def build_pretrained(recipe: Recipe, classes: int, preprocessing: Preprocessing) -> tuple[QuantizedModel, Pretrained]:
    """Build the model of a recipe with its weights loaded, and prepare it, on the CPU.

    The float network gets them before it is converted; those of a run, whose network is converted already, after.

    Args:
        recipe: The settings, as `resolve_weights` returns them.
        classes: Number of logits.
        preprocessing: How an image becomes an input.

    Raises:
        CptError: As `build_cpt_model`; or if the weights cannot be read or are another model's.
    """
    name, path, digest = recipe.model.name, recipe.model.weights, recipe.model.weights_sha256
    assert path is not None
    assert digest is not None
    weights = read_pretrained(Path(path), name)
    network = build_network(recipe, classes, preprocessing)
    tensors, left_out = split_auxiliary_heads(network, weights.tensors)
    weights = replace(weights, tensors=tensors)
    head = last_layer(network, preprocessing.input_shape)
    if weights.prepared:
        prepared = prepare_network(network, recipe, preprocessing)
        fresh = load_pretrained(prepared.network, weights, head, name)
    else:
        fresh = load_pretrained(network, weights, head, name)
        prepared = prepare_network(network, recipe, preprocessing)
    known = weights.tensors.get(f"{head}.weight")
    return prepared, Pretrained(
        file=path,
        sha256=digest,
        tensors=len(weights.tensors) - len(fresh),
        head=head,
        fresh=fresh,
        classes=None if known is None else len(known),
        left_out=left_out,
        published_input=None if weights.prepared else _other_normalization(recipe, preprocessing),
    )


def _other_normalization(recipe: Recipe, preprocessing: Preprocessing) -> Normalization | None:
    """Return what torchvision's published weights read if a run's images are normalised otherwise."""
    name = recipe.model.name
    if not name.startswith(PREFIX) or preprocessing.channels != 3:
        return None
    published = published_normalization(name.removeprefix(PREFIX), recipe.model.args)
    return None if published == (preprocessing.mean, preprocessing.std) else published


def refuse_weights(recipe: Recipe) -> None:
    """Raise `UsageError` if a recipe whose model begins fresh in any case names weights."""
    if recipe.model.weights is not None:
        raise UsageError("Expected model.weights with a classifier of images, but got it with a language model")
