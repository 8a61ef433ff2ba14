"""The verbs of `cpt`, one a file, in the order in which `cpt --help` lists them."""

from cpt_cli.command import Command
from cpt_cli.commands import (
    api_key,
    benchmark,
    datasets,
    export,
    info,
    models,
    predict,
    quickstart,
    serve,
    sweep,
    train,
    validate,
)

COMMANDS: tuple[Command, ...] = (
    quickstart.COMMAND,
    train.COMMAND,
    export.COMMAND,
    sweep.COMMAND,
    validate.COMMAND,
    benchmark.COMMAND,
    predict.COMMAND,
    serve.COMMAND,
    api_key.COMMAND,
    models.COMMAND,
    datasets.COMMAND,
    info.COMMAND,
)

__all__ = ["COMMANDS"]
