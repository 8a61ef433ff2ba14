"""Parsing the words and options of a command line that define a recipe."""

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


def parse_bounds(bits: str, option: str = "--bits") -> tuple[int, int]:
    """Parse MIN-MAX bits, such as 3-8.

    Args:
        bits: The value of the option.
        option: Name of the option, for messages.

    Raises:
        UsageError: If the value has another form.
    """
    min_bits, _, max_bits = bits.partition("-")
    if not (min_bits.isdigit() and max_bits.isdigit()):
        raise UsageError(
            f"Expected {option} as MIN-MAX, such as 4-8, but got {bits!r}",
            hint="for the same bits throughout use the static schedule: precision.schedule=static precision.max_bits=8",
        )
    return int(min_bits), int(max_bits)
