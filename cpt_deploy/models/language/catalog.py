"""Build a language model by name."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from cpt_deploy.errors import UsageError
from cpt_deploy.models.language.lstm import LstmLanguageModel
from cpt_deploy.models.language.transformer import TransformerLanguageModel
from cpt_deploy.registry import Registry, import_object, nearest_names

LanguageModelFactory = Callable[..., nn.Module]
"""A function that builds a language model, see `preparing`, from `vocabulary` and user arguments."""

language_models: Registry[LanguageModelFactory] = Registry("language model")
"""The project's own language models, by name."""

language_models.register("lstm-lm")(LstmLanguageModel)
language_models.register("transformer-lm")(TransformerLanguageModel)


def language_model_names(pattern: str = "*") -> list[str]:
    """Return the names of the known language models that match a shell pattern."""
    return language_models.names(pattern)


def build_language_model(name: str, vocabulary: int, **args: Any) -> nn.Module:
    """Build a float language model with random weights.

    Args:
        name: One of `language_model_names`, or an import path "module:factory" of a class or function that returns a
            language model, see `preparing`; it gets `vocabulary`.
        vocabulary: Number of different tokens.
        **args: Further arguments of the model, such as `layers=2`.

    Raises:
        UsageError: If the name is unknown, or the model does not accept the arguments.
    """
    if ":" in name:
        found = import_object(name)
        if not callable(found):
            raise UsageError(f"Expected {name!r} to be callable, but it is of type {type(found).__name__}")
        factory = cast(LanguageModelFactory, found)
    elif name in language_models:
        factory = language_models.get(name)
    else:
        raise UsageError(
            f"Expected a known language model, since the data is text, but got {name!r}",
            hint=f"model.name=…; {nearest_names(name, language_model_names())}",
        )
    try:
        inspect.signature(factory).bind(vocabulary, **args)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(factory).parameters)[1:])
        raise UsageError(
            f"Expected arguments that model {name} takes, but got {args}: {error}", hint=f"it takes {known}"
        ) from error
    model = factory(vocabulary, **args)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"Expected {name!r} to return a language model, but it returns a {type(model).__name__}",
            hint="see cpt_deploy.models.language.preparing",
        )
    return model
