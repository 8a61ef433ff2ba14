"""From a recipe to its task, with its data opened."""

from pathlib import Path

import torch

from cpt_deploy.data.text import Corpus, build_tokenizer, corpora, is_corpus, load_corpus
from cpt_deploy.recipe import Recipe
from cpt_deploy.training.fine_tuning import resolve_weights
from cpt_deploy.training.loop.setup import load_data
from cpt_deploy.training.tasks.classification import Classification
from cpt_deploy.training.tasks.interface import Task
from cpt_deploy.training.tasks.language import LanguageModelling


def load_task(recipe: Recipe, device: torch.device, processes: int = 1) -> Task:
    """Open the data of a recipe and resolve what it leaves to them.

    Args:
        recipe: The settings.
        device: Where the model will be.
        processes: How many processes of the run share this machine's cores and memory.

    Raises:
        CptError: If the data are unknown, missing or damaged, or settings do not fit them.
    """
    if not is_language_model(recipe):
        classified = recipe.model_copy(update={"data": recipe.data.model_copy(update={"task": "classification"})})
        return Classification(load_data(resolve_weights(classified), device, processes))
    recipe = _resolved(recipe)
    corpus = load_corpus_of(recipe)
    text = recipe.data.text
    tokenizer = build_tokenizer(corpus.text("train"), text.level, text.vocabulary_size)
    return LanguageModelling(recipe, corpus, tokenizer)


def is_language_model(recipe: Recipe) -> bool:
    """Return whether a recipe's task is to predict text: as it says, or as its data are."""
    if recipe.data.task == "auto":
        return is_corpus(recipe.data.name)
    return recipe.data.task == "language-model"


def load_corpus_of(recipe: Recipe) -> Corpus:
    """Find the corpus that a recipe names.

    Raises:
        DataError: If its files are missing.
    """
    root = None if recipe.data.root is None else Path(recipe.data.root)
    return load_corpus(recipe.data.name, root)


def _resolved(recipe: Recipe) -> Recipe:
    settings = recipe.data
    name = settings.name
    if name not in corpora and Path(name).expanduser().exists():
        name = str(Path(name).expanduser().resolve())  # a run is read again from other working directories
    root = None if settings.root is None else str(Path(settings.root).expanduser().resolve())
    data = settings.model_copy(update={"name": name, "root": root, "task": "language-model"})
    return recipe.model_copy(update={"data": data})
