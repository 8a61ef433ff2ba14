"""The commands of `cpt`, one per file; those that check, run and serve a bundle lie directly in this folder."""

from cpt_cli.command import Command
from cpt_cli.commands import api_key, benchmark, generate, inspect, predict, serve, sign, validate, verify
from cpt_cli.commands.listing import datasets, info, models, recipes, schedules
from cpt_cli.commands.training import (
    compare,
    export,
    landscape,
    quickstart,
    range_test,
    sharpness,
    sweep,
    train,
    train_grid,
)

COMMANDS: tuple[Command, ...] = (  # in the order of `cpt --help`
    quickstart.COMMAND,
    range_test.COMMAND,
    train.COMMAND,
    train_grid.COMMAND,
    compare.COMMAND,
    landscape.COMMAND,
    sharpness.COMMAND,
    export.COMMAND,
    sweep.COMMAND,
    inspect.COMMAND,
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
