"""The Typer app `cpt` and its `main`, the one place where an error becomes a line on stderr and an exit code."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cpt_cli import garbage
from cpt_cli.command import examples
from cpt_cli.commands import COMMANDS
from cpt_cli.help_pages import MAX_WIDTH, CommandGroup
from cpt_cli.output import out
from cpt_deploy import __version__
from cpt_deploy.errors import (
    CptError,
    DataError,
    MissingExtraError,
    ProcessLostError,
    RunInterruptedError,
    TrainingDivergedError,
    UsageError,
)

INTERRUPTED = 130

# Distributions of the extra `train`, by the module that a user without it cannot import.
_TRAIN_MODULES = ("matplotlib", "onnx", "onnxscript", "sklearn", "tensorboard", "torch", "torchvision")

EXIT_CODES = (
    "0 ok, 1 unexpected, 2 usage, 3 missing extra, 4 validation failed, 5 data or file problem, 130 or 143 interrupted"
)

ROOT_EXAMPLES = (
    "cpt quickstart  # the whole path on a small data set",
    "cpt train fashion-mnist-resnet20  # train a preset; cpt export, validate and serve come next",
    "cpt serve runs/fashion-mnist-resnet20/bundle-8bit",
)

app = typer.Typer(
    name="cpt",
    cls=CommandGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": MAX_WIDTH},
)


def _print_version(value: bool) -> None:
    if value:
        out.line(f"cpt-deploy {__version__}")
        raise typer.Exit


def root_epilog() -> str:
    """Return the epilog of `cpt --help`: examples and exit codes."""
    return f"{examples(ROOT_EXAMPLES)}\nExit codes:\n  {EXIT_CODES}\n"


@app.callback(epilog=root_epilog())
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train networks with cyclic precision, freeze them to integers, validate them and serve them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: Words after `cpt`; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = next((word for word in words if not word.startswith("-")), "")
    # Errors of a line that does not parse need the modes as well, so the options of the output are read here.
    out.configure(
        command=command,
        json_mode="--json" in words,
        quiet="--quiet" in words or "-q" in words,
        debug="--debug" in words or os.environ.get("CPT_DEBUG", "") not in ("", "0"),
        rank=_torchrun("RANK"),
    )
    _tolerate_narrow_encodings()
    garbage.look_less_often()
    try:
        code = app(words, prog_name="cpt", standalone_mode=False)
    except typer.TyperException as error:
        if _torchrun("LOCAL_RANK"):
            return error.exit_code
        known = any(command == entry.name for entry in COMMANDS)
        out.error(
            _sentence(error.format_message()),
            hint=f"see cpt {command} --help" if known else "see cpt --help",
            exit_code=error.exit_code,
            kind="UsageError",
        )
        return error.exit_code
    except typer.Abort:
        return _interrupted()
    except Exception as error:
        return _report(error)
    return _interrupted() if code == INTERRUPTED else int(code or 0)


def _interrupted() -> int:
    out.error("interrupted", exit_code=INTERRUPTED, kind="Interrupted")
    return INTERRUPTED


def _report(error: Exception) -> int:
    """Print an error as one line with its hint and return its exit code."""
    if out.debug:
        out.traceback(error)
    known = error if isinstance(error, CptError) else _as_known(error)
    if known is not None and _said_by_another(known):
        return known.exit_code
    if known is not None:
        out.error(known.message, hint=known.hint, exit_code=known.exit_code, kind=type(known).__name__)
        return known.exit_code
    reason = str(error).strip().partition("\n")[0]
    out.error(
        f"unexpected {type(error).__name__}: {reason}" if reason else f"unexpected {type(error).__name__}",
        hint=None if out.debug else "add --debug (or CPT_DEBUG=1) to see the traceback",
        exit_code=CptError.exit_code,
        kind=type(error).__name__,
    )
    return CptError.exit_code


def _torchrun(name: str) -> int:
    """Return a number that torchrun sets in the environment; 0 in a process not started by torchrun."""
    value = os.environ.get(name, "0") if "WORLD_SIZE" in os.environ else "0"
    return int(value) if value.isdecimal() else 0


def _said_by_another(error: CptError) -> bool:
    """Return whether another process of a distributed run reports the same error or its cause."""
    if out.rank == 0:
        return False
    if isinstance(error, RunInterruptedError | TrainingDivergedError | ProcessLostError):
        return True
    return isinstance(error, UsageError) and _torchrun("LOCAL_RANK") > 0


def _as_known(error: Exception) -> CptError | None:
    """Convert an exception from elsewhere to a `CptError`, or return None if it is unexpected."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _TRAIN_MODULES:
            return MissingExtraError(f"{package} is not installed", extra="train")
    if isinstance(error, OSError) and error.filename is not None:
        return DataError(f"{error.filename}: {error.strerror or error}")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(error.strerror or str(error))
    if type(error).__name__ == "OutOfMemoryError":
        return CptError("the device has no memory left", hint="lower train.batch_size, or choose another --device")
    return None


def _sentence(message: str) -> str:
    return message.strip().removesuffix(".")


def _tolerate_narrow_encodings() -> None:
    """Replace characters that the terminal's encoding lacks by question marks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
