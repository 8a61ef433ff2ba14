"""Entries of the catalogs of `cpt models` and `cpt datasets`, and the check of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelEntry:
    """A model that recipes can name.

    Args:
        name: Its name.
        task: Name of the task.
        parameters: Number of trainable values; None if it was not counted.
        macs: Multiply-accumulates per sample, likewise.
        input: One sample in words, as "3 x 32 x 32".
        classes: Number of classes or tokens in words.
        problem: Why it could not be counted.
        facts: Further facts for the JSON output.
    """

    name: str
    task: str
    parameters: int | None = None
    macs: int | None = None
    input: str = ""
    classes: str = ""
    problem: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSize:
    """The size of a model's input and output that was asked for; None is the usual one.

    Args:
        channels: Channels of images.
        side: Height and width of images.
        classes: Number of classes or tokens.
    """

    channels: int | None = None
    side: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class DataEntry:
    """Data that recipes can name.

    Args:
        name: Its name.
        task: Name of the task.
        summary: Description.
        sizes: Number of classes, and sizes of the training and the test split, in words.
        obtain: How to get it.
        problem: Why it cannot be read here; None if it can.
        facts: Further facts for the JSON output.
    """

    name: str
    task: str
    summary: str
    sizes: tuple[str, str, str]
    obtain: str
    problem: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataCheck:
    """What `cpt datasets check` finds in a data set, in words.

    Args:
        sizes: Size of each split.
        table: Names of columns, then rows of cells: the content of the splits.
        problems: Entries of each problem, by its title; `errors` says which of them prevent training.
        notes: What else is worth knowing.
        errors: What prevents training, one line each.
        repair: How to go on with errors.
        content: The same for the JSON output.
    """

    sizes: Mapping[str, str]
    table: Sequence[Sequence[str]]
    problems: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    errors: Sequence[str] = ()
    repair: str | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
