"""Fine-tuning: start a run from a weights file, verified by its digest, and report which tensors were loaded."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.models.auxiliary_heads import split_auxiliary_heads
from cpt_deploy.models.pretrained import last_layer, load_pretrained, read_pretrained
from cpt_deploy.models.torchvision_models import PREFIX, Normalization, published_normalization
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.recipe import Recipe
from cpt_deploy.registry import ONNX_FILE
from cpt_deploy.training.loop.setup import build_network, prepare_network
from cpt_deploy.training.reports import Pretrained
from cpt_deploy.training.run_directory.run_directory import RunDirectory


def resolve_weights(recipe: Recipe) -> Recipe:
    """Return the recipe with the absolute paths of its ONNX and weights files, and the digests of their contents.

    Raises:
        DataError: If there is no such file, or it does not have the digest of the recipe.
    """
    settings = recipe.model
    if settings.name.startswith(ONNX_FILE):
        from cpt_deploy.models.onnx_module import digest_of  # onnx takes long to import

        path = Path(settings.name.removeprefix(ONNX_FILE)).expanduser().resolve()
        args = {"sha256": digest_of(path)} | settings.args
        settings = settings.model_copy(update={"name": f"{ONNX_FILE}{path}", "args": args})
        recipe = recipe.model_copy(update={"model": settings})
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
            hint="a resumed run needs the file that it began with; if it has moved: model.weights=PATH",
        )
    model = settings.model_copy(update={"weights": str(path), "weights_sha256": digest})
    return recipe.model_copy(update={"model": model})


def build_pretrained(recipe: Recipe, classes: int, preprocessing: Preprocessing) -> tuple[QuantizedModel, Pretrained]:
    """Build the model of a recipe with its weights loaded, and prepare it, on the CPU.

    Weights of a float network are loaded before conversion; those of a run, whose network is converted, after it.

    Args:
        recipe: The settings, as `resolve_weights` returns them.
        classes: Number of logits.
        preprocessing: How an image becomes an input.

    Raises:
        CptError: As `build_cpt_model`; or if the weights cannot be read or belong to another model.
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
        prepared = prepare_network(network, recipe, torch.zeros(2, *preprocessing.input_shape))
        fresh = load_pretrained(prepared.network, weights, head, name)
    else:
        fresh = load_pretrained(network, weights, head, name)
        prepared = prepare_network(network, recipe, torch.zeros(2, *preprocessing.input_shape))
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
    """Return the input normalisation of torchvision's published weights, if the run's images have a different one."""
    name = recipe.model.name
    if not name.startswith(PREFIX) or preprocessing.channels != 3:
        return None
    published = published_normalization(name.removeprefix(PREFIX), recipe.model.args)
    return None if published == (preprocessing.mean, preprocessing.std) else published


def refuse_weights(recipe: Recipe) -> None:
    """Raise `UsageError` if a recipe names weights for a model that cannot be fine-tuned."""
    if recipe.model.weights is not None:
        raise UsageError("Expected no model.weights with this task, which begins with random weights, but got them")
