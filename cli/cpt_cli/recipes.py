"""What the words of a command line say about a recipe."""

from collections.abc import Sequence

from cpt_deploy.errors import UsageError


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the recipe's source, a preset or a file, and the overrides `key=value`.

    Raises:
        UsageError: If there is more than one source.
    """
    sources = [word for word in words if "=" not in word]
    if len(sources) > 1:
        raise UsageError(
            f"Expected one preset or recipe file, but got {', '.join(sources)}", hint="settings are written key=value"
        )
    return next(iter(sources), None), [word for word in words if "=" in word]
