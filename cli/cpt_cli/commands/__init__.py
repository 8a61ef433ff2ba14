"""The verbs of `cpt`, one a file, in the order in which `cpt --help` lists them."""

from cpt_cli.command import Command
from cpt_cli.commands import (
    api_key,
    benchmark,
    compare,
    datasets,
    export,
    generate,
    info,
    load_test,
    models,
    predict,
    quickstart,
    range_test,
    schedules,
    serve,
    sweep,
    train,
    validate,
)

COMMANDS: tuple[Command, ...] = (
    quickstart.COMMAND,
    range_test.COMMAND,
    train.COMMAND,
    compare.COMMAND,
    export.COMMAND,
    sweep.COMMAND,
    validate.COMMAND,
    benchmark.COMMAND,
    predict.COMMAND,
    generate.COMMAND,
    serve.COMMAND,
    load_test.COMMAND,
    api_key.COMMAND,
    models.COMMAND,
    datasets.COMMAND,
    schedules.COMMAND,
    info.COMMAND,
)

__all__ = ["COMMANDS"]
