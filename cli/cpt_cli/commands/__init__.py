"""The commands of `cpt`, one per file, in the order of `cpt --help`."""

from cpt_cli.command import Command
from cpt_cli.commands import (
    api_key,
    benchmark,
    compare,
    datasets,
    export,
    generate,
    info,
    landscape,
    models,
    predict,
    quickstart,
    range_test,
    recipes,
    schedules,
    serve,
    sharpness,
    sign,
    sweep,
    train,
    train_grid,
    validate,
    verify,
)

COMMANDS: tuple[Command, ...] = (
    quickstart.COMMAND,
    range_test.COMMAND,
    train.COMMAND,
    train_grid.COMMAND,
    compare.COMMAND,
    landscape.COMMAND,
    sharpness.COMMAND,
    export.COMMAND,
    sweep.COMMAND,
    validate.COMMAND,
    sign.COMMAND,
    verify.COMMAND,
    benchmark.COMMAND,
    predict.COMMAND,
    generate.COMMAND,
    serve.COMMAND,
    api_key.COMMAND,
    recipes.COMMAND,
    models.COMMAND,
    datasets.COMMAND,
    schedules.COMMAND,
    info.COMMAND,
)

__all__ = ["COMMANDS"]
