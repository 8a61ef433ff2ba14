"""The networks and corpora that text generation knows by name."""

from cpt_deploy.data.text import corpora, load_corpus
from cpt_deploy.errors import CptError
from cpt_deploy.models.language import describe_language_model
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.tasks.catalogs import DataEntry, ModelEntry, ModelSize

VOCABULARY = 10000
"""Number of different words of the Penn Treebank."""


def model_entry(name: str, size: ModelSize) -> ModelEntry:
    """Count the parameters and multiply-accumulates of a network per token."""
    tokens = size.classes or VOCABULARY
    summary = describe_language_model(name, tokens)
    facts = {"input": [1], "classes": tokens}
    return ModelEntry(
        name, TEXT_GENERATION, summary.parameters, summary.macs, "one token", f"{tokens:,} tokens", facts=facts
    )


def data_entries(pattern: str) -> list[DataEntry]:
    """Return the corpora whose names match a shell pattern."""
    return [_entry(name) for name in corpora.names(pattern)]


def _entry(name: str) -> DataEntry:
    info = corpora.get(name)
    try:
        load_corpus(name)
        problem = None
    except CptError as error:
        problem = error.message
    tokens = dict(zip(("train", "valid", "test"), info.tokens, strict=False))
    sizes = ("", "90 %", "5 %")  # a single file is divided
    if tokens:
        sizes = (f"{info.types:,} words", f"{tokens['train']:,} words", f"{tokens['test']:,} words")
    facts = {"words": info.types or None, "tokens": tokens}
    return DataEntry(name, TEXT_GENERATION, info.summary, sizes, info.obtain, problem, facts)
